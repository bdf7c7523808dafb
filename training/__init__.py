"""Offline training. Imports the engine; never the service, never the workers."""
