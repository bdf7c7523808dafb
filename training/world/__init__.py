"""The procedural world: characters with identity factors, scenes, captions, references, and an oracle."""
