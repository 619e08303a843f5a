"""The database of a search: an Optuna study in SQLite or any database that SQLAlchemy knows, and the setting that it is for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import make_url

from pipeline.config import translate_old_keys
from pipeline.errors import UserError
from pipeline.files.folder_lock import lock_file
from pipeline.run_folder.study_folder import read_study_facts
from pipeline.search.space import Space

SETTING = "setting"
POSTGRESQL = "for PostgreSQL: pip install .[postgresql]"
NOT_A_TRIAL = ("imported_from", "duplicate_of", "void")
"""Attributes of entries that are not runs of this search: imported trials, repeated points, and trials that never started."""


def build_sqlite_url(folder: Path) -> str:
    """Returns the URL of the default database, a file in the study's folder."""
    return f"sqlite:///{folder / 'study.db'}"


def hide_password(url: str) -> str:
    """Returns the URL without its password, for messages and files."""
    return make_url(url).render_as_string(hide_password=True)


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Connects to the database, and creates its tables if they do not exist. Raises UserError that names the URL and the
    remedy."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        parsed = make_url(url)
        local = parsed.get_backend_name() == "sqlite"
        if local and parsed.database:
            _make_folder(Path(parsed.database).parent)
        # a search asks a few times a minute, so a connection is opened for each time: none is ever stale or left open
        options: dict[str, Any] = {"poolclass": sqlalchemy.pool.NullPool}
        if local:  # two searches at once: a writer waits for the other one's commit
            options["connect_args"] = {"timeout": 60}
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except ModuleNotFoundError as error:
        raise UserError(f"--storage needs the Python package {error.name}; {POSTGRESQL}") from None
    except ImportError as error:
        raise UserError(f"--storage: {str(error).strip().splitlines()[0]}; {POSTGRESQL}") from None
    except sqlalchemy.exc.ArgumentError:
        what = "write sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
        raise UserError(f"--storage is not a database URL that SQLAlchemy knows; {what}") from None
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise UserError(f"the database {hide_password(url)} does not answer as a storage of searches: {reason}") from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "choose another run.storage_path, or name the database with --storage"
        raise UserError(f"folder {folder} cannot be made or written into: {error.strerror or error}; {remedy}") from None


def open_study(
    url: str, name: str, directions: Sequence[Literal["maximize", "minimize"]], setting: Mapping[str, Any]
) -> optuna.Study:
    """Opens the study of this name, or creates it. Raises UserError, naming what differs, if it was made for another
    setting."""
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name=name, directions=[*directions], load_if_exists=True)
    before = study.user_attrs.get(SETTING)
    if before is None:
        study.set_user_attr(SETTING, json.dumps(setting, sort_keys=True))
        before = study.user_attrs[SETTING]
    old, now = translate_old_keys(json.loads(before)), json.loads(json.dumps(setting))
    keys = [key for key in sorted({*old, *now}) if old.get(key) != now.get(key)]
    differing = [f"{key}: the study has {old.get(key)!r}, now {now.get(key)!r}" for key in keys]
    if differing:
        remedy = f"choose another --name (and --warm-start {name}):"
        what = f"the study {name} in {hide_password(url)} is for another setting; {remedy}"
        raise UserError(what, differing)
    return study


def list_run_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Lists the entries that are runs of this search, by number."""
    return [trial for trial in study.get_trials(deepcopy=False) if not set(NOT_A_TRIAL) & set(trial.user_attrs)]


def warm_start(study: optuna.Study, space: Space, url: str, where: str, folder: Path) -> str:
    """Copies the results of an earlier study, once, and returns a sentence about it.

    ``where`` is the folder of a search, or the name of a study in this database. Results of another setting guide the sampler,
    but their points do not count as tried. Raises UserError.
    """
    earlier = _load_study(where, url)
    if len(earlier.directions) != len(study.directions):
        raise UserError(f"--warm-start {where}: it has {len(earlier.directions)} objectives, this has {len(study.directions)}")
    has_same_setting = earlier.user_attrs.get(SETTING) == study.user_attrs.get(SETTING)
    with lock_file(folder / ".warm-start.lock", str(folder), 60):
        known = {trial.user_attrs.get("imported_from") for trial in study.get_trials(deepcopy=False)}
        taken = skipped = 0
        for trial in list_run_trials(earlier):
            mark = f"{earlier.study_name}#{trial.number}"
            if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or mark in known:
                continue
            if not _is_inside(trial.params, space):
                skipped += 1
                continue
            study.add_trial(_copy_trial(trial, space, {"imported_from": mark, "same_setting": has_same_setting}))
            taken += 1
    outside = f"; {skipped} lie outside of this space" if skipped else ""
    return f"warm start: {taken} trials of {earlier.study_name}{outside}"


def _load_study(where: str, url: str) -> optuna.Study:
    """Loads a study by its folder (whose study.json has the name), else by its name in this database."""
    name, about = where, read_study_facts(Path(where))
    if about is not None:
        name = about["name"]
        url = build_sqlite_url(Path(where).resolve()) if (Path(where) / "study.db").is_file() else url
    storage = open_storage(url)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        names = ", ".join(optuna.get_all_study_names(storage)) or "none"
        what = f"no folder of a search, nor a study in {hide_password(url)}, which has: {names}"
        raise UserError(f"--warm-start {where}: {what}") from None


def _is_inside(params: Mapping[str, Any], space: Space) -> bool:
    if set(params) != set(space.distributions):
        return False
    try:
        return all(dist._contains(dist.to_internal_repr(params[key])) for key, dist in space.distributions.items())
    except ValueError:
        return False


def _copy_trial(trial: FrozenTrial, space: Space, marks: Mapping[str, Any]) -> FrozenTrial:
    complete = trial.state == TrialState.COMPLETE
    return create_trial(
        state=trial.state,
        values=trial.values if complete else None,
        params=trial.params,
        distributions=dict(space.distributions),
        intermediate_values=trial.intermediate_values,
        user_attrs={**trial.user_attrs, **marks},
    )
