"""What several test files share: servers, projects, small data, and ways to make a training fail."""
