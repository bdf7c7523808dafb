"""The procedural world: characters, scenes, captions, references, and an oracle."""
