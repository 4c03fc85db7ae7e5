package capture

import (
	"strings"
	"testing"
)

// TestRowsWrittenAwayFromHomeAreCounted: two and between, top and sub of a large transaction, and a long one; neither one, which is at
// home, nor what a bridge has applied, nor deletes whose old image has the key alone.
func TestRowsWrittenAwayFromHomeAreCounted(t *testing.T) {
	for column, want := range map[string]uint64{"x": 5, "y": 0, "": 0} {
		w := newWorkbench(t, MinFrameBytes)
		w.tagger.opts.HomeColumn = func(schema, table string) string {
			if schema+"."+table != "public.t" {
				t.Errorf("it asks for %s.%s", schema, table)
			}
			return column
		}
		w.tagger.opts.AtHome = func(value []byte) bool { return strings.HasPrefix(string(value), "one") }
		if err := w.play(exampleScript(3*MinFrameBytes), 1<<20); err != nil {
			t.Fatal(err)
		}
		if got := w.tagger.counters.Away; got != want {
			t.Errorf("column %q: %d rows, want %d", column, got, want)
		}
	}
}
