"""The AIM's HTTPS interface: a registered party fetches the packages made for it and posts its receipts."""
