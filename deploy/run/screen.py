"""What a newcomer sees and acts on when everything runs."""

from __future__ import annotations

from rich.console import Console

from deploy.run.folder import Demo
from deploy.run.programme import order_id

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0"  # curl's own is a known robot


def show(places: dict[str, str], link_url: str, edge_url: str, api_url: str, demo: Demo | None) -> None:
    """Print what runs where, the demo link and lines to copy. Lines are never wrapped."""
    console = Console(soft_wrap=True, highlight=False)
    console.print("\n[bold]Clickdam runs.[/bold] Ctrl-C stops it.\n")
    for name, place in places.items():
        console.print(f"  {name:<14}", end="")
        console.print(place, markup=False)
    if demo is not None:
        console.print("\nOpen the demo link in a browser and buy something:\n")
        console.print(f"  {link_url}", style="bold", markup=False)
        console.print("\nOr copy these lines: a click, its sale, the same sale again, the partner's report.\n")
        for line in lines(link_url, edge_url, api_url, demo):
            console.print(line, markup=False)
    console.print()


def lines(link_url: str, edge_url: str, api_url: str, demo: Demo) -> list[str]:
    """Four commands for a shell: click, sale (accepted), the same (duplicate), report (1 click, 1 conversion)."""
    sale = f"order_id={order_id()}&amount=49.90&currency=EUR&token={demo.advertiser_token}"
    postback = f'curl -s "{edge_url}/postback?click_id=$CID&{sale}"; echo'
    what = "timezone=UTC&group_by=day&metrics=clicks,conversions,sale_amount,payout"
    report = f"{api_url}/v1/reports?from=$(date -u +%F)&{what}"
    click = f"curl -s -o /dev/null -w '%{{redirect_url}}' -A '{BROWSER}' {link_url}"
    return [
        f"CID=$({click} | sed 's/.*click_id=//; s/&.*//')",
        postback,
        postback,
        f'sleep 1; curl -s -H "Authorization: Bearer {demo.partner_key}" "{report}"; echo',
    ]
