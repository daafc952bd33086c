"""The published code's variants, kept to compare the kit with: what lies here is run by tests and `make parity` alone."""
