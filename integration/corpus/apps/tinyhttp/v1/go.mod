module corpus.test/tinyhttp

go 1.25
