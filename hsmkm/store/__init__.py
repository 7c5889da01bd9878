"""What a deployment knows, in one database: every change is one transaction that ends with one audit record."""
