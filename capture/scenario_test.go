package capture

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

var update = flag.Bool("update", false, "write the expected parts of testdata/scenarios anew")

// TestScenarios runs the SQL of each file and compares what other nodes get to read, and what Deletes is
// told, with the rest of the file. A file is SQL, a line of dashes, the outcome; "-- setup" ends the part
// that runs before capture is set up.
func TestScenarios(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/scenarios/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		for _, file := range files {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
				t.Parallel()
				scenario(t, s, file)
			})
		}
	})
}

const outcomeLine = "----\n"

func scenario(t *testing.T, s *pgtest.Server, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sql, want, _ := strings.Cut(string(text), outcomeLine)
	schema, steps, ok := strings.Cut(sql, "-- setup\n")
	if !ok {
		t.Fatalf("%s has no line \"-- setup\"", file)
	}
	b := newBench(t, s.NewDatabase(t), schema)
	b.opts.FrameBytes = MinFrameBytes
	b.publishUnusable()
	b.start(nil)
	b.exec(steps)
	frames := b.sentinel()
	var got strings.Builder
	for _, x := range b.transactions(frames) {
		got.WriteString(x.String())
	}
	for _, line := range b.deletes.told() {
		if !strings.Contains(line, "public.sentinel") {
			got.WriteString("told: " + line + "\n")
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(sql+outcomeLine+got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}

// publishUnusable publishes the tables that Setup leaves out: one may have lost its key since.
func (b *bench) publishUnusable() {
	b.t.Helper()
	b.exec(`DO $$ DECLARE t regclass; BEGIN
		FOR t IN SELECT c.oid FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relpersistence = 'p'
			AND NOT relispartition AND relname NOT IN (SELECT tablename FROM pg_publication_tables WHERE pubname = '` + b.opts.Publication + `')
		LOOP EXECUTE 'ALTER PUBLICATION ` + ident(b.opts.Publication) + ` ADD TABLE ' || t; END LOOP; END $$`)
}
