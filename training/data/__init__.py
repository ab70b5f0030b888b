"""The images of a training: where they come from, how they are split, their pixels."""
