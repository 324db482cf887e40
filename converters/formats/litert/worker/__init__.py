"""What runs inside the pinned LiteRT environment, where no boardfit is installed."""
