"""From a run to a folder that may be given away: card, numbers, licence, example, sums."""
