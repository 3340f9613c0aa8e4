"""The rig of the system tests and of ./demo: real guests, real front-ends, the real daemon."""
