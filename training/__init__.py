"""Offline training. Imports the engine; never the service, never the workers."""

import engine as _engine  # noqa: F401  before the libraries that it quiets
