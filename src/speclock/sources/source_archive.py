"""A program that downloads a package's source archive, and does no more: ``pip download`` runs its code.

To learn what a source archive depends on, pip unpacks it and calls its build backend (or ``setup.py``), and
no option keeps it from that, ``--no-deps`` included. So this is ``pip download`` cut short: the same options,
configuration, indexes, certificates and credentials, up to the file on the disk.

    python source_archive.py --no-binary :all: --dest FOLDER NAME==VERSION

pip promises nothing of its internals, so they are used here alone, in a process of their own.
"""

from __future__ import annotations

import sys
from optparse import Values
from pathlib import Path

from pip._internal.commands.download import DownloadCommand
from pip._internal.exceptions import DistributionNotFound
from pip._internal.network.utils import HEADERS, raise_for_status, response_chunks
from tqdm import tqdm


class _DownloadArchive(DownloadCommand):
    def run(self, options: Values, args: list[str]) -> int:
        (requirement,) = args
        name, _, version = requirement.partition("==")
        session = self.get_default_session(options)
        candidates = self._build_package_finder(options=options, session=session).find_all_candidates(name)
        link = next((c.link for c in candidates if str(c.version) == version), None)
        if link is None:
            raise DistributionNotFound(f"No source archive found for {requirement}")
        # The last part alone: an address may spell a slash as %2F.
        target = Path(options.download_dir) / Path(link.filename).name
        response = session.get(link.url_without_fragment, headers=HEADERS, stream=True)
        raise_for_status(response)
        size = int(response.headers.get("Content-Length", 0)) or None
        # On stdout, as pip draws its own; none in a pipe.
        bar = tqdm(desc=target.name, total=size, unit="B", unit_scale=True, file=sys.stdout, disable=None)
        with bar, target.open("wb") as file:
            for chunk in response_chunks(response):
                bar.update(file.write(chunk))
        return 0


if __name__ == "__main__":
    # Under this name pip also reads what its configuration says of downloads.
    sys.exit(_DownloadArchive("download", "").main(sys.argv[1:]))
