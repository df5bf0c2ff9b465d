"""What the `feast` command reads: the definitions as module-level objects, for the settings in the environment.

Everything else uses `feature_repo.definitions.build` or `ml.features.open_feature_store`.
"""

from __future__ import annotations

import os

from catalog.load import load_catalog
from catalog.settings import SettingsError, load_settings
from feature_repo.definitions import build

if not os.environ.get("HEADWATER_HOME"):
    # Feast fills in feature_store.yaml from the environment and knows no default.
    raise SettingsError(["environment:HEADWATER_HOME: not set, the `feast` command needs it: an absolute directory"])

settings = load_settings(os.environ)
definitions = build(settings.lake_dir, load_catalog(settings.catalog).models)

customer = definitions.entity
globals().update({f"{view.name}_view": view for view in definitions.views})
globals().update({f"{service.name}_service": service for service in definitions.services})
