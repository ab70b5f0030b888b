"""One file per architecture, and the one preprocessing that training and service share."""
