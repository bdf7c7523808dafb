"""What reinforcement is rewarded for, behind one door (`training.rewards.door`)."""
