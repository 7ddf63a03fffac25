"""Speed and accuracy as claims: timed in pairs, judged, stored and reported."""
