"""The concentrator's process: it dials the AIM for its packages, and relays between the head end and its meters."""
