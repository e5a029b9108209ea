"""`iccm environment`: packages that judged code may import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iccm_assets.cli.console import AsJson, echo_json, err, make_table, out, pluralize, print_line
from iccm_assets.settings import get_settings

if TYPE_CHECKING:
    from iccm_assets.sandbox.environments import Environment

group = typer.Typer(help="Manage the packages that judged code may import.", no_args_is_help=True)


@group.command()
def create(
    name: Annotated[str, typer.Argument(help="Name: lower-case letters, digits, '.', '_' and '-'.")],
    requirements: Annotated[Path, typer.Option(help="Requirements file of pip.")],
    as_json: AsJson = False,
) -> None:
    """Install packages from the package index into a new environment of the judge.

    The packages' own code runs while they are installed, as with pip. Texts that were inconclusive because
    the judge lacked one of them are scored again.
    """
    from iccm_assets.cli.context import open_platform
    from iccm_assets.sandbox.environments import create_environment
    from iccm_assets.scoring.environment_rows import register_environment
    from iccm_assets.storage_cache import open_storage

    settings, engine = open_platform()
    environment, is_new = create_environment(
        settings.home,
        name,
        requirements,
        lambda line: err.print(line, markup=False, highlight=False, soft_wrap=True),
        open_storage(settings),
    )
    texts = register_environment(engine, environment)
    if as_json:
        echo_json({**_document(environment), "is_new": is_new, "texts_to_score_again": texts})
        return
    packages = pluralize(len(environment.packages), "package")
    done = f"{environment.name} {environment.digest[:12]}: {packages}"
    print_line(done if is_new else f"{done}; it was there before")
    if texts:
        print_line(f"{pluralize(texts, 'text')} that lacked a package will be scored again.")


@group.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the environments of this machine and the storage; of those with one name, the newest is used."""
    from iccm_assets.sandbox.environments import list_environments
    from iccm_assets.storage_cache import open_storage

    settings = get_settings()
    documents = [_document(item) for item in list_environments(settings.home, open_storage(settings))]
    if as_json:
        echo_json(documents)
        return
    rows = [
        {**item, "packages": " ".join(item["packages"]), "digest": item["digest"][:12]} for item in documents
    ]
    out.print(make_table("Environments", rows) if rows else "There is no environment.")


@group.command()
def delete(
    name: Annotated[str, typer.Argument(help="Name or digest.")],
    as_json: AsJson = False,
) -> None:
    """Delete an environment from this machine and the storage; verdicts keep its digest."""
    from iccm_assets.sandbox.environments import delete_environment
    from iccm_assets.storage_cache import open_storage

    settings = get_settings()
    environment = delete_environment(settings.home, name, open_storage(settings))
    if as_json:
        echo_json({"deleted": environment.digest})
    else:
        print_line(f"{environment.name} {environment.digest[:12]} is deleted.")


def _document(environment: Environment) -> dict[str, Any]:
    """Build the JSON document of an environment; its keys are promised to other programs."""
    return {
        "name": environment.name,
        "digest": environment.digest,
        "packages": list(environment.packages),
        "created_at": environment.created_at,
    }
