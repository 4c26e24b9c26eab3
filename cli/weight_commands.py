"""The commands about weights: weights port."""

import click


@click.group()
def weights():
    """Bring weights of other libraries into a form that --weights and --swin-weights take."""


@weights.command()
@click.argument("source", type=click.Path())
@click.option("--backbone", required=True, help="densenet121, densenet169, swin_tiny, swin_small, swin_base, ...")
@click.option("--out", required=True, type=click.Path(), help="The preset folder to write.")
@click.option("--image-size", type=int, help="Of a Swin transformer; default: its smallest.")
def port(source, backbone, out, image_size):
    """Turn SOURCE, a state dict of torchvision or timm (.safetensors, .pth) or a Hugging Face folder, into a preset."""
    from kmura.models.weights import port_preset

    done = port_preset(source, backbone, out, image_size=image_size)
    click.echo(
        f"{out}: {done.matched} arrays matched, 0 missing, {len(done.reshaped)} reshaped, "
        f"{len(done.ignored)} of heads left",
        err=True,
    )
    if done.other_padding:
        click.echo(f"use it with: --weights {out} --set model.torch_padding=true", err=True)


COMMANDS = (weights,)
