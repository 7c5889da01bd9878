"""How the store's schema came about, one step for each release that changed it."""
