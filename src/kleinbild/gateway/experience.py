"""What has been learned of places, kept over a restart: a file in the data folder, which may be missing or lost."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from kleinbild.gateway.routing.predict import Predictor

FILE = "predictions.json"
log = logging.getLogger(__name__)


def read(data: Path) -> Predictor:
    """One that cannot be read is begun anew: it is only experience."""
    predictor = Predictor()
    try:
        predictor.merge(json.loads((data / FILE).read_text("utf-8")))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be used, what is learned of places begins anew: %s", data / FILE, error)
        return Predictor()
    return predictor


def keep(data: Path, predictor: Predictor) -> None:
    """Whole or not at all."""
    new = data / f"{FILE}.new"
    try:
        new.write_text(json.dumps(predictor.to_json()), "utf-8")
        new.replace(data / FILE)
    except OSError as error:
        log.warning("what was learned of places could not be kept: %s", error)
