"""The tables of `docs/conformance-statement.md` (PS3.2), made from what the program knows."""
