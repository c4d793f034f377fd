"""The tests that need the programs of `make peers`, on Debian and as root."""
