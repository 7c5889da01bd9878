"""`hsmkm pki`: authorities, requests, certificates, revocation and trust."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.approved import Approval, named
from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, party_worker, show, talk
from hsmkm.cli.streamed import show_streamed
from hsmkm.errors import RefusedError
from hsmkm.steps.results import Made

if TYPE_CHECKING:
    from hsmkm.pki import pkilint
    from hsmkm.steps import ceremony, certify, expiry, lint_files, party, renew_certificates
    from hsmkm.steps import issue as issue_step
    from hsmkm.store import certificates
else:
    (pkilint,) = deferred("hsmkm.pki", "pkilint")
    ceremony, certify, expiry, lint_files, party, renew_certificates = deferred(
        "hsmkm.steps", "ceremony", "certify", "expiry", "lint_files", "party", "renew_certificates"
    )
    (issue_step,) = deferred("hsmkm.steps", "issue")
    (certificates,) = deferred("hsmkm.store", "certificates")

app = typer.Typer(help="Certificates, authorities, revocation, trust.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="A folder.")]
Out = Annotated[Path, typer.Option(help="Folder to write to.")]
Curve = Annotated[str, typer.Option(help="P-384, or P-256 for a PKI whose parties have no keys on P-384.")]


def _show(made: Sequence[Made]) -> None:
    rows = [
        {"profile": item.profile, "subject": item.subject, "serial": item.serial or None, "file": item.path}
        for item in made
    ]
    show(rows, ("profile", "subject", "serial", "file"))


@app.command()
def create_root(
    name: Annotated[str, typer.Argument(help="The root's name.")],
    curve: Curve = "P-384",
    transcript: Annotated[
        Path | None, typer.Option(help="File for the transcript of the ceremony, to be signed on paper.")
    ] = None,
    approval: Approval = "",
) -> None:
    """Make a root authority.

    Its key is made in the token, and its certificate is signed by itself.
    """
    with party_worker() as worker:
        if transcript is None:
            _show([worker.call(certify.create_root, name, curve, named(approval))])
        else:
            path = transcript.resolve()
            _show([worker.call(ceremony.create_root_with_transcript, name, curve, path, named(approval))])


@app.command()
def create_issuing(
    name: Annotated[str, typer.Argument(help="The authority's name.")],
    profile: Annotated[
        str, typer.Option(help="issuing (DLMS, TLS), package-issuing (package signing) or officer-issuing (officers).")
    ] = "issuing",
    curve: Curve = "P-384",
    approval: Approval = "",
) -> None:
    """Make an issuing authority under the root."""
    with party_worker() as worker:
        _show([worker.call(certify.create_issuing, profile, name, curve, named(approval))])


@app.command()
def renew(
    out: Out, days: Annotated[int, typer.Option(min=0, max=3660, help="Also what ends within so many days.")] = 30
) -> None:
    """Write requests for our certificates that are due.

    Their keys stay. Issue them, install them, and let every peer register them with party add --replace.
    """
    with party_worker() as worker:
        _show(worker.call(renew_certificates.request_own, out.resolve(), days))


@app.command()
def request(
    out: Out,
    name: Annotated[
        list[str] | None, typer.Option(help="DNS name or IP address of the TLS service; repeatable.")
    ] = None,
) -> None:
    """Write a request for each of our certificates.

    Each is PKCS#10, signed by the key that it is for.
    """
    with party_worker() as worker:
        _show(worker.call(certify.request, tuple(name or ()), out.resolve()))


@app.command()
def issue(
    folder: Folder,
    out: Out,
    *,
    without_end: Annotated[
        bool, typer.Option("--without-end", help="For devices: signature and agreement certificates that never expire.")
    ] = False,
) -> None:
    """Issue certificates for a folder of requests.

    The requests PROFILE.csr or TITLE.PROFILE.csr are checked; none is issued if one is wrong.
    """
    with party_worker() as worker:
        issuing = issue_step.issue_without_end if without_end else issue_step.issue
        _show(worker.call(issuing, folder.resolve(), out.resolve()))


@app.command()
def install(folder: Folder) -> None:
    """Install our own certificates from a folder.

    The files are called PROFILE.pem.
    """
    with party_worker() as worker:
        _show(worker.call(certify.install, folder.resolve()))


@app.command()
def trust(root: Annotated[Path, typer.Argument(help="The root's certificate, PEM.")], approval: Approval = "") -> None:
    """Place a trust anchor.

    Compare the fingerprint shown with the one that the authority tells you.
    """
    with party_worker() as worker:
        made = worker.call(certify.place_anchor, root.resolve(), named(approval))
    show([{"anchor": made.subject, "sha256": made.serial, "file": made.path}], ("anchor", "sha256", "file"))


@app.command()
def update(folder: Folder) -> None:
    """Take published intermediates and CRLs.

    Only what is under a placed anchor is taken.
    """
    with party_worker() as worker:
        _show(worker.call(certify.update_trust, folder.resolve()))


@app.command()
def publish(
    out: Out, days: Annotated[int, typer.Option(min=1, max=366, help="Days until the CRLs are past their date.")] = 7
) -> None:
    """Write root, intermediates and new CRLs.

    The files are root.pem, intermediates.pem and one CRL for each authority.
    """
    with party_worker() as worker:
        _show(worker.call(certify.publish, out.resolve(), days))


@app.command()
def revoke(
    certificate: Annotated[Path, typer.Argument(help="The certificate, PEM.")],
    reason: Annotated[str, typer.Option(help="As RFC 5280 names it, such as keyCompromise.")] = "unspecified",
) -> None:
    """Revoke a certificate that we issued.

    Publish a new CRL afterwards.
    """
    with party_worker() as worker:
        _show([worker.call(certify.revoke, certificate.resolve(), reason)])


@app.command()
def expiring(
    days: Annotated[int, typer.Option(min=0, max=3660, help="Also what ends within so many days.")] = 30,
) -> None:
    """Name what expires or is due for renewal.

    A certificate is due when two thirds of its life are over; lists of revocations count too.
    """
    home = frame().home
    with party.open_listing(home) as store, store.read() as tx:
        found = [*expiry.due_certificates(tx, party.utc_now(), days), *expiry.due_lists(home, party.utc_now(), days)]
    rows = [
        {
            "owner": item.owner,
            "profile": item.profile,
            "source": item.source,
            "state": item.state,
            "not_after": item.not_after,
            "serial": item.serial or None,
        }
        for item in found
    ]
    show(rows, ("owner", "profile", "source", "state", "not_after", "serial"))


@app.command()
def lint(
    files: Annotated[list[Path], typer.Argument(help="Certificates (PEM or DER) and revocation lists.")],
    issuer: Annotated[
        list[Path] | None, typer.Option(help="Certificate of an issuer that is not in this home; repeatable.")
    ] = None,
) -> None:
    """Check certificates and lists in files.

    By the rules of our profiles, and by pkilint where it is installed. Exit code 1 for an error.
    """
    found = lint_files.lint_files(frame().home, files, issuer or ())
    if not pkilint.is_installed():
        talk("pkilint is not installed: the rules of hsmkm alone were checked")
    rows = [
        {"file": item.file, "subject": item.subject, "linter": item.linter, "finding": item.finding} for item in found
    ]
    show(rows, ("file", "subject", "linter", "finding"))
    wrong = [f"{item.file}: {item.subject}: {item.finding}" for item in found if item.is_error]
    if wrong:
        raise RefusedError(f"{len(wrong)} error(s) found", wrong, hint="do not use what is named, or say who issued it")


@app.command(name="list")
def list_certificates() -> None:
    """List the certificates in the store.

    They are our own, those issued, the parties' and the anchors.
    """
    columns = ("owner", "profile", "source", "state", "not_after", "serial")
    with party.open_listing(frame().home) as store:
        rows = (
            {
                "owner": item.owner,
                "profile": item.profile,
                "source": item.source.value,
                "state": item.state.value,
                "not_after": item.not_after,
                "serial": item.serial.hex().upper(),
            }
            for item in certificates.every(store)
        )
        show_streamed(rows, columns)
