"""`hsmkm model`: meter models and their initial keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, party_worker, show
from hsmkm.cli.reference import In
from hsmkm.config import data_folder, load_model

if TYPE_CHECKING:
    from hsmkm.steps import model as model_step
    from hsmkm.steps import party
    from hsmkm.store import models
else:
    model_step, party = deferred("hsmkm.steps", "model", "party")
    (models,) = deferred("hsmkm.store", "models")

app = typer.Typer(help="Meter models and the keys they come with.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The model's name.")]


@app.command(name="list")
def list_models() -> None:
    """List meter models.

    Says whether their initial keys are in the token's care.
    """
    home = frame().home
    with party.open_listing(home) as store, store.read() as tx:
        given = dict(models.listing(tx))
    folders = [folder for folder in (home / "models", data_folder("models")) if folder.is_dir()]
    names = sorted({path.stem for folder in folders for path in folder.glob("*.toml")} | set(given))
    show(
        [{"model": name, "initial_keys": "imported" if given.get(name) else "none"} for name in names],
        ("model", "initial_keys"),
    )


@app.command(name="show")
def show_model(
    name: Name,
    association: In = "",
) -> None:
    """Show a model's settings, in one of its associations."""
    whole = load_model(name, frame().home)
    model = whole.association(association)
    rows: list[dict[str, object]] = [
        {"setting": "associations", "value": " ".join(whole.associations)},
        {"setting": "for_concentrator", "value": model.for_concentrator},
        {"setting": "flags", "value": " ".join(model.flags)},
        {"setting": "suites", "value": " ".join(map(str, model.suites))},
    ]
    protection = (model.authentication, model.security_setup, model.protection)
    for section in (model.addressing, *protection, model.counter, model.key_transfer):
        rows += [
            {"setting": f"{type(section).__name__}.{key}", "value": getattr(section, key)}
            for key in type(section).__dataclass_fields__
        ]
    show(rows, ("setting", "value"))


@app.command()
def import_keys(
    name: Name,
    keys: Annotated[Path, typer.Option(help="File of lines `guek = HEX`, gak, master, gbek, lls, hls; mode 0600.")],
    suite: Annotated[
        int | None, typer.Option(min=0, max=2, help="Security suite of the keys; the model's one.")
    ] = None,
    association: In = "",
) -> None:
    """Import the keys a model's meters come with.

    They are sealed under the storage key at once. Further associations without keys of their own come with the first's.
    """
    chosen = model_step.choose_suite(load_model(name, frame().home), suite)
    with party_worker() as worker:
        roles = worker.call(model_step.import_keys, name, chosen, keys.resolve(), association)
    show([{"model": name, "suite": chosen, "keys": " ".join(roles)}], ("model", "suite", "keys"))
