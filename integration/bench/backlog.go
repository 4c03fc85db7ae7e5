package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// backlogFull is what a source commits in five minutes at 2 000 transactions a second.
const backlogFull = 5 * 60 * 2000

// backlogScripts are pgbench's scripts beside its own two.
func backlogScripts() []script {
	return []script{
		{"insert", 2, "INSERT INTO bench_rows SELECT nextval('bench_ids'), i, md5(i::text) FROM generate_series(1, 20) i;\n"},
		// Ranges do not overlap, so that clients never wait for each other in a circle.
		{"update", 1, "\\set first 10 * random(0, :rows / 10 - 1) + 1\n" +
			"UPDATE bench_rows SET n = n + 1 WHERE id BETWEEN :first AND :first + 9;\n"},
		{"delete", 1, "\\set id random(1, :rows)\nDELETE FROM bench_rows WHERE id = :id;\n"},
	}
}

// script is one of pgbench's, and how many parts of the mix it is.
type script struct {
	name   string
	weight int
	text   string
}

func prepareBacklog(ctx context.Context, s *server, n int) error {
	if err := preparePgbench(ctx, s, n); err != nil {
		return err
	}
	if err := prepareFilled(ctx, s, n); err != nil {
		return err
	}
	return s.exec(ctx, fmt.Sprintf("CREATE SEQUENCE bench_ids START %d", n+1))
}

// writeBacklog commits a mix: six parts of pgbench -N, two of its default script, and the scripts above.
func writeBacklog(ctx context.Context, s *server, n int) error {
	dir, err := os.MkdirTemp("", "pgbridge-bench-scripts-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	args := []string{"-D", "rows=" + strconv.Itoa(n), "-b", "simple-update@6", "-b", "tpcb-like@2"}
	for _, c := range backlogScripts() {
		file := filepath.Join(dir, c.name)
		if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
			return err
		}
		args = append(args, "-f", fmt.Sprintf("%s@%d", file, c.weight))
	}
	return runPgbench(ctx, s, n, args...)
}
