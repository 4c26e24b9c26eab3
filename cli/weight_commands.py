"""The commands for weights: weights port."""

import click

from kmura.cli.options import Choice, examples
from kmura.config.names import BACKBONE_NAMES, SWIN_NAMES


@click.group(short_help="Port weights of other libraries.")
def weights():
    """Port weights of other libraries to presets that --weights and --swin-weights accept."""


@weights.command(
    short_help="Turn weights of torch or Hugging Face into a preset.",
    epilog=examples("kmura weights port densenet121.pth --backbone densenet121 --out densenet"),
)
@click.argument("source", type=click.Path())
@click.option(
    "--backbone",
    required=True,
    type=Choice(BACKBONE_NAMES + SWIN_NAMES),
    metavar="BACKBONE",
    help=f"The network of the weights: {', '.join(BACKBONE_NAMES + SWIN_NAMES)}.",
)
@click.option("--out", required=True, type=click.Path(), help="The preset folder to write.")
@click.option(
    "--image-size", type=int, show_default="its smallest", help="For a Swin transformer: rows and columns of its input."
)
def port(source, backbone, out, image_size):
    """Turn SOURCE, weights of torchvision, timm or Hugging Face, into a preset.

    SOURCE is a state dict (.safetensors or .pth) or a folder that Hugging Face's transformers saved. A preset is a
    folder that --weights and --swin-weights of `kmura fit` accept. The command fails unless SOURCE contains every
    array of the backbone.
    """
    from kmura.models.weights import port_preset

    ported = port_preset(source, backbone, out, image_size=image_size)
    click.echo(
        f"{out}: {ported.matched} arrays matched, 0 missing, {len(ported.reshaped)} reshaped, "
        f"{len(ported.ignored)} of other layers ignored",
        err=True,
    )
    if ported.other_padding:
        click.echo(f"use it with: --weights {out} --set model.torch_padding=true", err=True)


COMMANDS = (weights,)
