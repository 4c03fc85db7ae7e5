package capture

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/wire"
)

// placedByID are places by public.t's id, for node a.
func placedByID() func(schema, table string) *wire.Places {
	p := &wire.Places{Column: "id", Nodes: map[string][]string{"1": {"a", "b"}, "2": {"b", "c"}, "3": {"a", "c"}}}
	return func(schema, table string) *wire.Places {
		if schema+"."+table != "public.t" {
			return nil
		}
		return p
	}
}

// placedScript has rows of this node, of others, and such as go from the ones to the others, alone, in a transaction that is streamed, and as one
// message that comes in parts.
func placedScript(large int) *script {
	s := &script{}
	s.table(5, nil)
	s.begin(100, 1000, 701).add('I', uint32(5), 'N', tuple(1, "ours")).add('I', uint32(5), 'N', tuple(2, "theirs")).
		add('U', uint32(5), 'N', tuple(2, "theirs")).add('D', uint32(5), 'K', keyTuple(2)).
		add('U', uint32(5), 'K', keyTuple(1), 'N', tuple(2, "to them")).add('U', uint32(5), 'K', keyTuple(2), 'N', tuple(3, "to us")).
		add('U', uint32(5), 'K', keyTuple(3), 'N', tuple(1, "to others of us")).add('U', uint32(5), 'K', keyTuple(1), 'N', tuple(9, "to all")).commit(100, 1000)
	s.begin(200, 1100, 702).add('I', uint32(5), 'N', tuple(2, "theirs alone")).commit(200, 1100)
	s.add('S', uint32(710), byte(1)).table(5, be32(710)).add('I', uint32(711), uint32(5), 'N', tuple(2, "theirs")).
		add('I', uint32(710), uint32(5), 'N', tuple(3, "ours")).add('U', uint32(710), uint32(5), 'K', keyTuple(3), 'N', tuple(2, "to them")).add('E')
	s.add('c', uint32(710), byte(0), uint64(300), uint64(308), uint64(1200))
	long := strings.Repeat("x", large)
	s.begin(400, 1300, 721).add('I', uint32(5), 'N', tuple(2, long)).add('I', uint32(5), 'N', tuple(1, long)).
		add('U', uint32(5), 'K', keyTuple(1), 'N', tuple(3, long)).add('D', uint32(5), 'K', keyTuple(2)).commit(400, 1300)
	s.begin(500, 1400, 722).add('I', uint32(5), 'N', tuple(2, long)).commit(500, 1400)
	return s
}

const placedWhole = `1 up {} low {}
  insert public.t id=1 x=ours
  insert public.t id=2 x=theirs
  update public.t to id=2 x=theirs
  delete public.t key id=2 x=NULL
  update public.t key id=1 x=NULL to id=2 x=to them
  update public.t key id=2 x=NULL to id=3 x=to us
  update public.t key id=3 x=NULL to id=1 x=to others of us
  update public.t key id=1 x=NULL to id=9 x=to all
2 up {} low {}
  insert public.t id=2 x=theirs alone
3 large up {} low {}
  insert public.t id=2 x=theirs
  insert public.t id=3 x=ours
  update public.t key id=3 x=NULL to id=2 x=to them
4 large up {} low {}
  insert public.t id=2 x=<LARGE bytes>
  insert public.t id=1 x=<LARGE bytes>
  update public.t key id=1 x=NULL to id=3 x=<LARGE bytes>
  delete public.t key id=2 x=NULL
5 large up {} low {}
  insert public.t id=2 x=<LARGE bytes>
`

// TestPlacedRowsAreSealedByTheirPlace: a row is captured whoever is to have it, so that what stands in frames does not hang on the configuration,
// and said to be others' once. Sealed, it is for those who are to have it; one that goes to other nodes is deleted, too, for those who had it.
func TestPlacedRowsAreSealedByTheirPlace(t *testing.T) {
	for _, large := range []int{3 * MinFrameBytes, wholeLimit + 100} {
		for _, pieces := range []int{1 << 20, 1000} {
			whole := strings.ReplaceAll(placedWhole, "LARGE", fmt.Sprint(large))
			var log bytes.Buffer
			w := newWorkbench(t, MinFrameBytes)
			w.tagger.opts.Rows, w.tagger.opts.Logger = placedByID(), slog.New(slog.NewTextHandler(&log, nil))
			if err := w.play(placedScript(large), pieces); err != nil {
				t.Fatal(err)
			}
			if got := describe(t, w.pub.all()); got != whole {
				t.Errorf("captured is\n%s\nwant\n%s", got, whole)
			}
			if got := strings.Count(log.String(), "is for other nodes"); got != 2 { // of each announcement of the table
				t.Errorf("that rows are others' is said %d times:\n%s", got, log.String())
			}

			w = newWorkbench(t, MinFrameBytes)
			w.tagger.opts.Rows, w.tagger.opts.Open = placedByID(), testOpener(t)
			w.tagger.opts.SealRow = sealedFor(t, w.tagger.opts)
			if err := w.play(placedScript(large), pieces); err != nil {
				t.Fatal(err)
			}
			sealed := strings.NewReplacer("x=to them\n", "x=to them\n  delete public.t key id=OLD x=NULL\n", "x=to us\n", "x=to us\n  delete public.t key id=2 x=NULL\n",
				"x=to others of us\n", "x=to others of us\n  delete public.t key id=3 x=NULL\n").Replace(whole)
			sealed = strings.Replace(strings.Replace(sealed, "OLD", "1", 1), "OLD", "3", 1)
			last := fmt.Sprintf("  update public.t key id=1 x=NULL to id=3 x=<%d bytes>\n", large)
			sealed = strings.Replace(sealed, last, last+"  delete public.t key id=1 x=NULL\n", 1)
			if got := describe(t, w.pub.all()); got != sealed {
				t.Errorf("sealed, captured is\n%s\nwant\n%s", got, sealed)
			}
			for _, f := range w.pub.all() {
				if bytes.Contains(f.Body, []byte("to them")) || bytes.Contains(f.Body, []byte("ours")) || bytes.Contains(f.Body, []byte("theirs")) || bytes.Contains(f.Body, []byte("xxxx")) {
					t.Errorf("a frame can be read: %q", f.Body)
				}
			}
			requireGroups(t, w.pub.all())
		}
	}
}

// requireGroups fails if what a node opens is not what is for it, or written here.
func requireGroups(t *testing.T, frames []*wire.Frame) {
	t.Helper()
	for node, want := range map[string]string{"b": "IIUDUDDUU", "c": "IUDUUDDU", "d": "U"} {
		o, err := wire.NewOpener(node, [][]byte{testKey})
		if err != nil {
			t.Fatal(err)
		}
		body, err := o.Body(frames[0].Origin, frames[0].Body)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for recs := wire.NewRecords(body); ; {
			rec, err := recs.Next()
			if err != nil {
				break
			}
			if rec.Kind == wire.KindCommit {
				break // of the first transaction
			}
			if strings.ContainsRune("IUD", rune(rec.Kind)) {
				got += string(rune(rec.Kind))
			}
		}
		if got != want {
			t.Errorf("node %s reads %s of the first transaction, want %s", node, got, want)
		}
	}
}

// sealedFor makes sealers for rows of these nodes and of the author.
func sealedFor(t *testing.T, o *Options) func(nodes []string) *wire.Sealer {
	made := map[string]*wire.Sealer{}
	return func(nodes []string) *wire.Sealer {
		group := wire.Group(append([]string{"a"}, nodes...))
		if made[group] == nil {
			var err error
			if made[group], err = wire.NewSealer(o.Origin, group, testKey, bytes.Repeat([]byte{byte(len(made))}, wire.SealPrefixBytes)); err != nil {
				t.Fatal(err)
			}
		}
		return made[group]
	}
}

// TestCheckOfPlacedTables: what keeps rows from being on some nodes alone is found, with its mend, and nothing else.
func TestCheckOfPlacedTables(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE TYPE part AS ENUM ('eu', 'us');
			CREATE DOMAIN word AS text;
			CREATE TABLE t (txt text, vc varchar(9), ch char(3), id uuid, b boolean, s smallint, i int, l bigint, e part, d date, dom word, n int, out text,
				PRIMARY KEY (txt, vc, ch, id, b, s, i, l, e, d, dom));
			ALTER TABLE t REPLICA IDENTITY FULL;
			CREATE COLLATION loose (provider = icu, locale = 'und', deterministic = false);
			CREATE TABLE narrow (region text, id int, PRIMARY KEY (region, id));
			CREATE TABLE wide (region text, id int, v text, PRIMARY KEY (region, id));
			CREATE TABLE vague (region text COLLATE loose, id int, PRIMARY KEY (region, id));
			CREATE TABLE single (region text, id int UNIQUE, n int, PRIMARY KEY (region, id), UNIQUE (n, region));
			CREATE TABLE cut (region text, id int, v text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
			CREATE TABLE cut_eu PARTITION OF cut FOR VALUES IN ('eu'); ALTER TABLE cut_eu REPLICA IDENTITY FULL;
			CREATE TABLE cut_us PARTITION OF cut FOR VALUES IN ('us')`)
		for _, x := range []struct{ table, column, values, want string }{
			{"t", "txt", "eu,it's", ""}, {"t", "vc", "eu", ""}, {"t", "ch", "eu", ""}, {"t", "b", "true,false", ""}, {"t", "s", "-1", ""}, {"t", "i", "100000", ""},
			{"t", "l", "10000000000", ""}, {"t", "e", "eu", ""}, {"t", "id", "1a3da0b2-9f3e-4a55-8b6f-5a1f0e0c9c11", ""}, {"t", "txt", "*", ""}, {"t", "i", "*", ""},
			{"t", "i", "10000000000", `column "i", by which topology.rows says where its rows are: "10000000000" is not a number of its type`},
			{"t", "s", "01", `"01" is not a number`}, {"t", "b", "t", `"t" is neither true nor false`}, {"t", "id", "1A3DA0B2-9f3e-4a55-8b6f-5a1f0e0c9c11", "in small letters"},
			{"t", "d", "2026-01-01", "let it be text, varchar"}, {"t", "d", "*", "let it be text, varchar"}, {"t", "dom", "eu", "let it be text, varchar"},
			{"t", "n", "1", `outside of its key (b, ch, d, dom, e, i, id, l, s, txt, vc); make it part of the primary key`},
			{"t", "no", "1", `has no column "no"`}, {"no", "x", "1", `table "public"."no" is in topology.rows, and is not there`},
			{"vague", "region", "eu", "give it a deterministic collation"}, {"narrow", "region", "eu", ""},
			{"wide", "region", "eu", `run ALTER TABLE "public"."wide" REPLICA IDENTITY FULL`}, {"cut", "region", "eu", `of each partition, too`},
			{"single", "region", "eu", `unique index public.single_id_key without column "region"`},
		} {
			o := b.checkOptions()
			p := &wire.Places{Column: x.column, Nodes: map[string][]string{}}
			for value := range strings.SplitSeq(x.values, ",") {
				p.Nodes[value] = []string{"a", "b"}
			}
			o.Rows = map[TableName]*wire.Places{{"public", x.table}: p}
			err := Check(t.Context(), o)
			var check *CheckError
			switch {
			case x.want == "" && err != nil:
				t.Errorf("%+v is refused: %v", x, err)
			case x.want != "" && (!errors.As(err, &check) || len(check.Findings) != 1 || check.Findings[0].Code != CodeTableRows || !strings.Contains(err.Error(), x.want)):
				t.Errorf("%+v: %v", x, err)
			}
		}
	})
}
