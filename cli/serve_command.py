"""The command `kmura serve`."""

import click

from kmura.cli.options import examples


@click.command(
    short_help="Serve exports over HTTP, with a page in the browser.",
    epilog=examples(
        "kmura serve served/wrist",
        "kmura serve served/wrist served/hand --port 9000",
        "kmura serve served/wrist --host 0.0.0.0 --token-file token.txt --tls-certificate cert.pem --tls-key key.pem",
    ),
)
@click.argument("exports", nargs=-1, required=True, type=click.Path())
@click.option("--name", "names", multiple=True, show_default="of the folder", help="Name of the model, one per EXPORT.")
@click.option("--host", default="127.0.0.1", help="Address to listen on; others than loopback need a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8501, help="Port; 0 takes a free one.")
@click.option(
    "--token-file", type=click.Path(), help="File with the secret of requests, sent as Authorization: Bearer TOKEN."
)
@click.option("--no-auth", is_flag=True, help="Serve other machines without a token.")
@click.option("--tls-certificate", "certificate", type=click.Path(), help="PEM file of the certificate, for HTTPS.")
@click.option("--tls-key", "key", type=click.Path(), help="PEM file of its key.")
@click.option("--poll", type=click.FloatRange(0), default=5.0, help="Seconds between looks for new versions; 0: never.")
@click.option("--max-body", type=click.IntRange(1), default=64, help="Size of a request, MiB.")
@click.option("--max-pixels", type=click.IntRange(1), default=40, help="Pixels of an image, millions.")
@click.option("--max-files", type=click.IntRange(1), default=32, help="Images of a request.")
@click.option("--max-queue", type=click.IntRange(1), default=128, help="Images in progress; others are refused (503).")
@click.option("--batch-size", type=click.IntRange(1), default=16, help="Images per step of the model.")
@click.option("--batch-wait", type=click.FloatRange(0), default=2.0, help="Wait for others to form a batch, ms.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=60.0, help="Seconds per request.")
@click.option("--drain", type=click.FloatRange(0), default=30.0, help="Seconds for running requests after SIGTERM.")
@click.option("--decoders", type=click.IntRange(1), show_default="one per core", help="Processes that decode images.")
def serve(exports, names, poll, **options):
    """Serve the models of EXPORTS, folders made by `kmura export`, until SIGTERM or Ctrl-C (extra serve).

    Clients of TensorFlow Serving's REST interface need no change; image files may also be TIFF and DICOM. POST
    /v1/studies predicts the files of one study, and / is a page for people. A new version of an export is checked and
    replaces the one in use. See docs/serving.md.
    """
    from kmura.server.limits import Limits
    from kmura.server.serve import Address, serve
    from kmura.workers import processors

    limits = Limits(
        body=options.pop("max_body") << 20,
        pixels=options.pop("max_pixels") * 1_000_000,
        files=options.pop("max_files"),
        queue=options.pop("max_queue"),
        batch=options.pop("batch_size"),
        wait=options.pop("batch_wait") / 1000,
        timeout=options.pop("timeout"),
        drain=options.pop("drain"),
        decoders=options.pop("decoders") or processors(),
    )
    serve(exports, names=names, address=Address(**options), limits=limits, poll=poll, started=_show)


def _show(started) -> None:
    for name, version in started.models.items():
        click.echo(f"{name}: version {version}")
    token = "; requests need the token" if started.needs_token else ""
    click.echo(f"serving at {started.url} (Ctrl-C stops{token})")


COMMANDS = (serve,)
