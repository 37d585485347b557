"""What a training of a learned editor needs: models, episodes, configuration."""
