"""Aligned plain-text tables."""


def aligned(rows, head=None):
    from tabulate import tabulate

    return "\n".join(
        l.rstrip() for l in tabulate(rows, headers=head or (), tablefmt="plain", disable_numparse=True).splitlines()
    )
