"""Small First: a chat over your own documents in which a small model answers first."""

__version__ = "0.1.0"
