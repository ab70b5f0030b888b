"""The radiologist's worklist on screen, who may see it, and what people say of the results."""
