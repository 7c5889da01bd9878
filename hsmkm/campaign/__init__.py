"""Campaigns: the steps over a fleet, in slices that workers claim, limited, paced and taken over."""
