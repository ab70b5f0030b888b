"""The only place where a network is run in service."""
