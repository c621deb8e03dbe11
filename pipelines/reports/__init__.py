"""What people read: Evidently and the demo's page."""
