package capture

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/wire"
)

// columnOf says that the values of public.t's column are on some nodes.
func columnOf(column string, nodes ...string) func(schema, table string) []wire.ColumnNodes {
	return func(schema, table string) []wire.ColumnNodes {
		if schema+"."+table != "public.t" {
			return nil
		}
		return []wire.ColumnNodes{{Name: column, Nodes: nodes}, {Name: "later", Nodes: nodes}}
	}
}

// columnScript has values of column x, none, and such as are left unchanged, in old rows and new ones, alone, in a transaction that is streamed, and in
// messages that come in parts.
func columnScript(large int) *script {
	long := strings.Repeat("secret", large/6)
	none := func(id uint32) []byte {
		return appendTuple(nil, []wire.Value{{Format: wire.Binary, Data: be32(id)}, {Format: wire.Null}})
	}
	kept := func(id uint32) []byte {
		return appendTuple(nil, []wire.Value{{Format: wire.Binary, Data: be32(id)}, {Format: wire.Unchanged}})
	}
	s := &script{}
	s.table(5, nil)
	s.begin(100, 1000, 701).add('I', uint32(5), 'N', tuple(1, "secret")).add('I', uint32(5), 'N', none(2)).
		add('U', uint32(5), 'O', tuple(1, "secret"), 'N', kept(1)).add('U', uint32(5), 'O', tuple(1, "secret"), 'N', tuple(3, "")).
		add('U', uint32(5), 'K', keyTuple(3), 'N', tuple(4, "secret")).add('D', uint32(5), 'O', tuple(4, "secret")).add('D', uint32(5), 'K', keyTuple(2)).commit(100, 1000)
	s.add('S', uint32(710), byte(1)).table(5, be32(710)).add('I', uint32(711), uint32(5), 'N', tuple(2, "secret")).
		add('U', uint32(710), uint32(5), 'O', tuple(2, "secret"), 'N', tuple(2, "secret too")).add('I', uint32(710), uint32(5), 'N', tuple(9, long)).add('E')
	s.add('c', uint32(710), byte(0), uint64(300), uint64(308), uint64(1200))
	s.begin(400, 1300, 721).add('I', uint32(5), 'N', tuple(2, "secret")).add('U', uint32(5), 'O', tuple(2, long), 'N', tuple(2, long)).
		add('D', uint32(5), 'O', tuple(2, long)).commit(400, 1300)
	s.begin(500, 1400, 722).add('I', uint32(5), 'N', tuple(2, long)).commit(500, 1400)
	return s
}

const columnWhole = `1 up {} low {}
  insert public.t id=1 x=secret
  insert public.t id=2 x=NULL
  update public.t whole id=1 x=secret to id=1 x=UNCHANGED
  update public.t whole id=1 x=secret to id=3 x=
  update public.t key id=3 x=NULL to id=4 x=secret
  delete public.t whole id=4 x=secret
  delete public.t key id=2 x=NULL
2 large up {} low {}
  insert public.t id=2 x=secret
  update public.t whole id=2 x=secret to id=2 x=secret too
  insert public.t id=9 x=<LARGE bytes>
3 large up {} low {}
  insert public.t id=2 x=secret
  update public.t whole id=2 x=<LARGE bytes> to id=2 x=<LARGE bytes>
  delete public.t whole id=2 x=<LARGE bytes>
4 large up {} low {}
  insert public.t id=2 x=<LARGE bytes>
`

// TestValuesOfColumnsAreSealed: a row is captured whole whoever is to have its values; sealed, these can be read by those who are to have them, and by
// nobody else, and all else is as it was, record for record.
func TestValuesOfColumnsAreSealed(t *testing.T) {
	for _, large := range []int{3 * MinFrameBytes, wholeLimit + 100} {
		large -= large % 6
		for _, pieces := range []int{1 << 20, 1000} {
			whole := strings.ReplaceAll(columnWhole, "LARGE", fmt.Sprint(large))
			w := newWorkbench(t, MinFrameBytes)
			w.tagger.opts.Columns = columnOf("x", "a", "b")
			if err := w.play(columnScript(large), pieces); err != nil {
				t.Fatal(err)
			}
			if got := describe(t, w.pub.all()); got != whole {
				t.Errorf("captured is\n%s\nwant\n%s", got, whole)
			}
			w = newWorkbench(t, MinFrameBytes)
			w.tagger.opts.Columns, w.tagger.opts.Open = columnOf("x", "b", "c"), testOpener(t)
			w.tagger.opts.SealRow = sealedFor(t, w.tagger.opts)
			if err := w.play(columnScript(large), pieces); err != nil {
				t.Fatal(err)
			}
			sealed := strings.NewReplacer("x=secret", "x=sealed secret", "x=<", "x=sealed <", "x=\n", "x=sealed \n").Replace(whole)
			if got := describe(t, w.pub.all()); got != sealed {
				t.Errorf("sealed, captured is\n%s\nwant\n%s", got, sealed)
			}
			for _, f := range w.pub.all() {
				if bytes.Contains(f.Body, []byte("secret")) {
					t.Errorf("a frame can be read: %q", f.Body)
				}
			}
			again := newWorkbench(t, MinFrameBytes) // which reads them back
			again.restore.keys = map[uint32][]keyColumn{}
			for _, f := range w.pub.all() {
				if err := again.Restore(f); err != nil {
					t.Fatal(err)
				}
			}
			if got, want := again.deletes.told(), w.deletes.told(); !slices.Equal(got, want) || len(want) == 0 {
				t.Errorf("restored is told\n%q\nwant\n%q", got, want)
			}
			if held := cap(w.tagger.chunk) + cap(w.tagger.values); large > wholeLimit && held > wholeLimit {
				t.Errorf("%d bytes are kept", held)
			}
		}
	}
}

// TestValuesOfOthersAreSaidToStay: once for each announcement of the table, of what users write where it is not to be, and of nothing else.
func TestValuesOfOthersAreSaidToStay(t *testing.T) {
	said := func(columns func(schema, table string) []wire.ColumnNodes, changes func(s *script)) int {
		var log bytes.Buffer
		w := newWorkbench(t, MinFrameBytes)
		w.tagger.opts.Columns, w.tagger.opts.Logger = columns, slog.New(slog.NewTextHandler(&log, nil))
		s := (&script{}).table(5, nil).begin(100, 1000, 701)
		changes(s)
		if err := w.play(s.commit(100, 1000), 1<<20); err != nil {
			t.Fatal(err)
		}
		return strings.Count(log.String(), "a value is written here into a column")
	}
	none := appendTuple(nil, []wire.Value{{Format: wire.Binary, Data: be32(1)}, {Format: wire.Null}})
	for name, x := range map[string]struct {
		changes func(s *script)
		want    int
	}{
		"inserted":  {func(s *script) { s.add('I', uint32(5), 'N', tuple(1, "x")).add('I', uint32(5), 'N', tuple(2, "x")) }, 1},
		"updated":   {func(s *script) { s.add('U', uint32(5), 'O', tuple(1, "x"), 'N', tuple(1, "y")) }, 1},
		"left":      {func(s *script) { s.add('U', uint32(5), 'O', tuple(1, "x"), 'N', tuple(2, "x")) }, 0},
		"taken out": {func(s *script) { s.add('U', uint32(5), 'O', tuple(1, "x"), 'N', none).add('I', uint32(5), 'N', none) }, 0},
		"deleted":   {func(s *script) { s.add('D', uint32(5), 'O', tuple(1, "x")) }, 0},
	} {
		if got := said(columnOf("x", "b", "c"), x.changes); got != x.want {
			t.Errorf("%s: it is said %d times, want %d", name, got, x.want)
		}
		if got := said(columnOf("x", "a", "b"), x.changes); got != 0 {
			t.Errorf("%s where it is to be: it is said %d times", name, got)
		}
	}
}

// TestColumnThatIsLost: nobody knows under which name its values stand then. One that is not there yet may come.
func TestColumnThatIsLost(t *testing.T) {
	other := func(s *script) *script {
		return s.add('R', uint32(5), "public", "t", 'd', uint16(2), byte(1), "id", uint32(23), uint32(1<<32-1), byte(0), "other", uint32(25), uint32(1<<32-1))
	}
	play := func(s *script) error {
		w := newWorkbench(t, MinFrameBytes)
		w.tagger.opts.Columns = columnOf("x", "a", "b")
		return w.play(s, 1<<20)
	}
	row := func(s *script) *script {
		return s.begin(100, 1000, 701).add('I', uint32(5), 'N', tuple(1, "secret")).commit(100, 1000)
	}
	if err := play(row(other(&script{}).table(5, nil))); err != nil {
		t.Error(err)
	}
	if err := play(row(other((&script{}).table(5, nil)))); err == nil || !strings.Contains(err.Error(), "table public.t has column x no more") {
		t.Errorf("a column that is renamed: %v", err)
	}
}

// TestCheckOfPlacedColumns: what keeps the values of a column from being on some nodes alone is found, with its mend, and nothing else.
func TestCheckOfPlacedColumns(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE DOMAIN word AS text NOT NULL;
			CREATE TABLE parent (id int PRIMARY KEY);
			CREATE TABLE t (id int PRIMARY KEY, plain text, needed text NOT NULL, single text UNIQUE, shown text, made text GENERATED ALWAYS AS (lower(shown)) STORED,
				checked int CHECK (checked > 0), refers int REFERENCES parent, dom word, partial text, expr text, listed text, during int4range, EXCLUDE USING gist (during WITH &&));
			CREATE UNIQUE INDEX t_partial ON t (id) WHERE partial IS NOT NULL;
			CREATE UNIQUE INDEX t_expr ON t (id, lower(expr));
			CREATE INDEX t_listed ON t (listed);
			CREATE TABLE row_checked (id int PRIMARY KEY, v text);
			ALTER TABLE row_checked ADD CONSTRAINT whole CHECK (row_checked IS NOT NULL);
			CREATE TABLE cut (id int PRIMARY KEY, v text, w text) PARTITION BY RANGE (id);
			CREATE TABLE cut_1 PARTITION OF cut FOR VALUES FROM (0) TO (9);
			ALTER TABLE cut_1 ADD CHECK (v <> 'x')`)
		const has, elsewhere = `has column "%s", whose values only some nodes have (topology.columns), `, "take the column out of topology.columns, on all nodes"
		for _, x := range []struct{ table, column, want string }{
			{"t", "plain", ""}, {"t", "listed", ""}, {"cut", "w", ""},
			{"t", "id", has + "in its key, by which all nodes know a row; " + elsewhere},
			{"t", "needed", has + `that is NOT NULL, and to be NULL on others; run ALTER TABLE "public"."t" ALTER "needed" DROP NOT NULL, on every node, or ` + elsewhere},
			{"t", "single", has + "in the index public.t_single_key: nodes that have the values would decide otherwise than those that have not; drop the index, or " + elsewhere},
			{"t", "partial", has + "in the index public.t_partial: "}, {"t", "expr", has + "in the index public.t_expr: "}, {"t", "during", has + "in the index public.t_during_excl: "},
			{"t", "made", has + "that is generated; let it be an ordinary one, or "}, {"t", "shown", has + `from which the generated column "made" is made, so that `},
			{"t", "checked", has + "in the constraint t_checked_check: "}, {"t", "refers", has + "in the constraint t_refers_fkey: "},
			{"t", "dom", has + "of a domain, which may refuse to be NULL; let it have the domain's own type, or "},
			{"row_checked", "v", has + "in the constraint whole: "}, {"cut", "v", has + "in the constraint cut_1_v_check: "},
			{"t", "no", `has no column "%s", of which topology.columns says which nodes have its values; write its name as the server does, or add it, on all nodes`},
			{"no", "no", `table "public"."no" is in topology.columns, and is not there, or not replicated here (tables)`},
		} {
			o := b.checkOptions()
			o.Columns = map[TableName][]wire.ColumnNodes{{"public", x.table}: {{Name: x.column, Nodes: []string{"a", "b"}}}}
			err := Check(t.Context(), o)
			var check *CheckError
			want := strings.ReplaceAll(x.want, "%s", x.column)
			switch {
			case want == "" && err != nil:
				t.Errorf("%+v is refused: %v", x, err)
			case want != "" && (!errors.As(err, &check) || len(check.Findings) != 1 || check.Findings[0].Code != CodeTableColumns || !strings.Contains(err.Error(), want)):
				t.Errorf("%+v: %v", x, err)
			}
		}
	})
}
