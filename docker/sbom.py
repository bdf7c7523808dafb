"""`python sbom.py`: what is installed beside this interpreter, as CycloneDX 1.5 JSON on stdout."""

import importlib.metadata
import json
import re
import sys


def bill() -> dict[str, object]:
    """One component for each distribution, by name."""
    found = {}
    for one in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
        found[name] = {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{one.version}",
            "name": name,
            "version": one.version,
            "purl": f"pkg:pypi/{name}@{one.version}",
            **_licence(one.metadata),
        }
    parts = [found[name] for name in sorted(found)]
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": parts}


def _licence(about: importlib.metadata.PackageMetadata) -> dict[str, object]:
    told = about.get("License-Expression") or about.get("License") or ""
    # Some put the whole text there.
    return {"licenses": [{"license": {"name": told}}]} if 0 < len(told) < 80 else {}


if __name__ == "__main__":
    json.dump(bill(), sys.stdout, indent=1)
