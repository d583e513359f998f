"""Options that several commands share, and options derived from the fields of a configuration."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from speclock.errors import InputError
from speclock.recipe import TrainingRecipe
from speclock.tasks.reading import Reading

if typing.TYPE_CHECKING:
    from speclock.models import Model
    from speclock.tasks.base import Kind

F = TypeVar("F", bound=Callable[..., Any])

OUT = click.Path(path_type=Path)


class Number(click.ParamType):
    """A finite number, or `none` where the field allows it."""

    name = "number"

    def __init__(self, kind: type, optional: bool) -> None:
        self.kind = kind
        self.optional = optional

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if self.optional and value.lower() == "none":
            return None
        try:
            number = self.kind(value)
        except ValueError:
            self.fail(f"{value!r} is not {'a whole number' if self.kind is int else 'a number'}", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not finite", param, ctx)
        return number


class Command(click.Command):
    """Its help lists the options by whose they are, in the order in which they were declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            said = parameter.get_help_record(ctx)
            if said:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(said)
        for name, options in sections.items():
            with formatter.section(name):
                formatter.write_dl(options)


class _Option(click.Option):
    """One that stands in a section of the help."""

    def __init__(self, *args: Any, section: str, **more: Any) -> None:
        super().__init__(*args, **more)
        self.section = section


def field_options(*classes: type, leave_out: Iterable[str] = ()) -> Callable[[F], F]:
    """One option for every field of the configuration dataclasses, its help and default taken from them.

    A field that several classes share appears once. An option that is not given is absent from the
    command's keyword arguments (see :func:`given`), so that no default is written twice.
    """
    fields: dict[str, list[tuple[type, dataclasses.Field[Any]]]] = {}
    for cls in classes:
        for field in dataclasses.fields(cls):
            if field.name not in leave_out:
                fields.setdefault(field.name, []).append((cls, field))

    def decorate(function: F) -> F:
        for name, owners in reversed(fields.items()):
            cls, _ = owners[0]
            function = click.option(
                f"--{name.replace('_', '-')}",
                name,
                default=None,
                cls=_Option,
                section=_section_of(name, owners, alone=len(classes) == 1),
                help=_help_of(name, owners, alone=len(classes) == 1),
                **_click_type(typing.get_type_hints(cls)[name]),
            )(function)
        return function

    return decorate


_FEW = 5
"""Classes that a section of the help is called after."""


def _section_of(name: str, owners: list[tuple[type, dataclasses.Field[Any]]], *, alone: bool) -> str:
    """Training's options stand together, those of a few classes under their names, and those of many."""
    if name in {field.name for field in dataclasses.fields(TrainingRecipe)}:
        return "Training"
    if alone:
        return owners[0][0].__name__
    names = [cls.name for cls, _ in owners]  # type: ignore[attr-defined]
    return ", ".join(names) if len(names) <= _FEW else "Shared"


def _help_of(name: str, owners: list[tuple[type, dataclasses.Field[Any]]], *, alone: bool) -> str:
    """What an option is and its default; where the classes say different things, which says what."""
    docs: dict[str, list[str]] = {}
    for cls, _ in owners:
        docs.setdefault(field_docs(cls).get(name, ""), []).append(getattr(cls, "name", cls.__name__))
    defaults = [_show(field.default) for _, field in owners]
    names = [cls.name for cls, _ in owners] if not alone else []  # type: ignore[attr-defined]
    default = defaults[0]
    if len(set(defaults)) > 1:
        default = ", ".join(f"{value} ({owner})" for value, owner in zip(defaults, names, strict=True))
    said, *others = docs
    if others:
        said = " ".join(f"{', '.join(whose)}: {doc}" for doc, whose in docs.items())
    return f"{said}  [default: {default}]"


def _click_type(hint: Any) -> dict[str, Any]:
    if typing.get_origin(hint) is tuple:
        return {"type": str, "multiple": True}
    optional = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    options = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    kind = options[0] if optional else hint
    if typing.get_origin(kind) is typing.Literal:
        return {"type": click.Choice(typing.get_args(kind))}
    return {"type": Number(kind, optional) if kind in (int, float) else kind}


def _show(value: Any) -> str:
    return "none" if value in (None, (), "") else f"{value:g}" if isinstance(value, float) else str(value)


def given(ctx: click.Context, cls: type, values: Mapping[str, Any], chosen: str) -> dict[str, Any]:
    """The fields that were given on the command line; refuses one that ``cls`` does not have.

    ``chosen`` names the choice that decided on ``cls``, for the message: ``--lock rescale``.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    found = typed(ctx, values)
    for name in found:
        if name not in known:
            raise InputError(f"--{name.replace('_', '-')} is not an option of {chosen}. Leave it out.")
    return found


def typed(ctx: click.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that were given on the command line."""
    return {
        name: value
        for name, value in values.items()
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and its bases.

    >>> from speclock.recipe import Recipe
    >>> field_docs(Recipe)["batch_size"]
    'Examples per forward pass.'
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                docs[statement.target.id] = " ".join(str(after.value.value).split())
    return docs


reading_options = field_options(Reading)
"""How the files behind a task are read, and how long a text may be."""


def reading_of(ctx: click.Context, options: dict[str, Any]) -> Reading:
    """Take the options of :data:`reading_options` out of ``options``."""
    fields = {field.name: options.pop(field.name) for field in dataclasses.fields(Reading)}
    return Reading(**given(ctx, Reading, fields, "reading"))


def model_options(function: F) -> F:
    """Where models lie, and what the outputs of those mean that do not say so themselves."""
    for option in (
        click.option(
            "--labels", help="What the model's outputs mean, in their order, where it does not say: A,B,C."
        ),
        click.option("--device", help="cpu, cuda, … [default: the accelerator where there is one]"),
    ):
        function = option(function)
    return function


def load_model(name: str, device: str | None, labels: str | None = None, *, kind: Kind) -> Model:
    """The model at ``name`` on the device, for tasks of a kind, its outputs named as ``--labels`` has them."""
    from speclock import models

    model = models.load(name, device=device, kind=kind)
    return (
        model if labels is None else models.named(model, tuple(label.strip() for label in labels.split(",")))
    )


TASK_HELP = (
    "Built-in name or path, with :LABEL,LABEL to keep some labels and @TRAIN/TEST to keep so many examples "
    "(newsgroups:sci.space,rec.autos@640/200)."
)
