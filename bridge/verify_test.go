package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
)

// shown is a row as a node shows it: "w1 x" is row x, written by the local transaction w1; empty: there is none; "?" in front: it may
// yet go; "@7" behind: its version has that stamp.
func shown(text string) apply.VerifyLooked {
	l := apply.VerifyLooked{}
	if rest, ok := strings.CutPrefix(text, "?"); ok {
		l.Passing, l.Reason, text = true, "a delete may take it", rest
	}
	if text == "" {
		return l
	}
	text, stamp, ok := strings.Cut(text, "@")
	if ok {
		l.Version = apply.VerifyVersion{Known: apply.VerifyKnownBy, Origin: origin.Origin{Node: "a", Epoch: 1}}
		fmt.Sscan(stamp, &l.Version.Stamp)
	}
	l.Found = true
	writer, row, _ := strings.Cut(text, " ")
	l.Writer, l.Hash = writer, []byte(row)
	return l
}

// TestRowsAreJudgedByTheOrderOfLooks: the lead and the other node are looked at in turn, the lead first.
func TestRowsAreJudgedByTheOrderOfLooks(t *testing.T) {
	for _, tt := range []struct {
		what   string
		looks  []string // of the lead, of the other node, of the lead, ...
		want   verdict
		merged bool
	}{
		{"equal at the first look", []string{"w1 x", "v1 x"}, equal, false},
		{"neither has it", []string{"", ""}, equal, false},
		{"the other one has it later", []string{"w1 x", "v1 old", "w1 x", "v2 x"}, equal, false},
		{"the lead is behind", []string{"w1 old", "v1 x", "w2 x"}, equal, false},
		{"twice is not enough", []string{"w1 x", "v1 y", "w1 x", "v1 y"}, open, false},
		{"it differs", []string{"w1 x", "v1 y", "w1 x", "v1 y", "w1 x"}, differs, false},
		{"the other one lacks it", []string{"w1 x", "", "w1 x", "", "w1 x"}, differs, false},
		{"the lead lacks it", []string{"", "v1 x", "", "v1 x", ""}, open, false}, // it may have come and gone at the lead
		{"the lead lacks it, and the other one keeps it", []string{"", "v1 x", "", "v1 x", "", "v1 x"}, differs, false},
		{"the lead wrote it again", []string{"w1 x", "v1 y", "w2 x", "v1 y", "w2 x"}, open, false},
		{"the other one wrote it again", []string{"w1 x", "v1 y", "w1 x", "v2 z", "w1 x"}, open, false},
		{"a delete may take it at the lead", []string{"w1 x", "", "?w1 x", "", "w1 x"}, open, false},
		{"a delete may take it at the other one", []string{"w1 x", "v1 y", "w1 x", "?v1 y", "w1 x"}, open, false},
		{"it is written all the time", []string{"w1 a", "v1 b", "w2 c", "v2 d", "w3 e", "v3 f", "w4 g"}, open, false},
		{"all the time, and one version shows that it is equal", []string{"w1 a@1", "v1 b@2", "w2 c@3", "v3 c@3", "w9 g@9"}, equal, false},
		{"all the time, and one version shows that it differs", []string{"w1 a@1", "v1 b@2", "w2 c@3", "v2 d@3"}, differs, false},
		{"a merged row may be another one of the same version", []string{"w1 a@1", "v1 b@2", "w2 c@3", "v2 d@3"}, open, true},
		{"a version that may go says nothing", []string{"w1 c@3", "?v1 d@3"}, open, false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			k := newCandidate(nil, nil)
			k.pairs = make([]verdict, 2)
			for range 2 {
				k.looks = append(k.looks, &sightings{versions: map[apply.VerifyVersion][]byte{}})
			}
			for i, text := range tt.looks {
				k.looks[i%2].add(shown(text))
				k.judge(i%2 == 0, !tt.merged)
			}
			if k.pairs[1] != tt.want {
				t.Errorf("got verdict %d, want %d", k.pairs[1], tt.want)
			}
		})
	}
}

// TestTheRightRowIsTheLaterOne: who is right, by what is known of the rows' versions.
func TestTheRightRowIsTheLaterOne(t *testing.T) {
	by := func(node string, stamp origin.Stamp) apply.VerifyVersion {
		return apply.VerifyVersion{Known: apply.VerifyKnownBy, Origin: origin.Origin{Node: node, Epoch: 1}, Stamp: stamp}
	}
	old, foreign := apply.VerifyVersion{Known: apply.VerifyOld}, apply.VerifyVersion{Known: apply.VerifyForeign}
	row := func(text string, v apply.VerifyVersion) *apply.VerifyLooked {
		return &apply.VerifyLooked{Found: true, Hash: []byte(text), Version: v}
	}
	none := func(v apply.VerifyVersion) *apply.VerifyLooked { return &apply.VerifyLooked{Version: v} }
	for _, tt := range []struct {
		what string
		a, b *apply.VerifyLooked
		c    *apply.VerifyLooked
		want string
	}{
		{"the later stamp", row("x", by("a", 7)), row("y", by("b", 9)), row("x", by("a", 7)), "b"},
		{"of equal stamps the later name", row("x", by("a", 7)), row("y", by("b", 7)), row("x", by("a", 7)), "b"},
		{"one that is known", row("x", old), row("y", foreign), row("z", by("b", 1)), "c"},
		{"one from before the cluster before one of nobody", row("x", foreign), row("y", old), row("y", old), "b"},
		{"a row before nothing", none(apply.VerifyVersion{}), row("y", foreign), none(apply.VerifyVersion{}), "b"},
		{"a later delete", row("x", by("a", 7)), none(by("b", 8)), row("x", by("a", 7)), "b"},
		{"not an earlier delete", row("x", by("a", 7)), none(by("b", 6)), row("x", by("a", 7)), "a"},
		{"of one version, that of its author", row("x", by("b", 7)), row("y", by("b", 7)), row("x", by("b", 7)), "b"},
		{"of one version, the author is not compared", row("x", by("d", 7)), row("y", by("d", 7)), row("x", by("d", 7)), ""},
		{"nobody knows", row("x", old), row("y", old), row("x", old), ""},
	} {
		t.Run(tt.what, func(t *testing.T) {
			d := &RowDifference{looks: map[string]*apply.VerifyLooked{"a": tt.a, "b": tt.b, "c": tt.c}}
			d.decide([]string{"a", "b", "c"}, "")
			if d.Right != tt.want || (d.Refused == "") != (tt.want != "") {
				t.Errorf("node %q is right, %q; want %q", d.Right, d.Refused, tt.want)
			}
			if d.decide([]string{"a", "b", "c"}, "c"); d.Right != "c" || d.Refused != "" {
				t.Errorf("node %q is right where c was named", d.Right)
			}
		})
	}
}

// TestVerifyOptionsAreChecked: what names no node of the cluster is refused before anything is asked.
func TestVerifyOptionsAreChecked(t *testing.T) {
	cfg := &config.Config{Node: "a", Topology: config.Topology{Kind: "mesh", Nodes: map[string]string{"a": "", "b": "", "c": ""}}}
	b := &bridge{cfg: cfg}
	for _, tt := range []struct {
		o    VerifyOptions
		want string
	}{
		{VerifyOptions{}, "[a b c]"},
		{VerifyOptions{Nodes: []string{"c", "c"}}, "[a c]"},
		{VerifyOptions{Nodes: []string{"d"}}, "--node d: topology.nodes has no such node; it has a, b, c"},
		{VerifyOptions{Nodes: []string{"a"}}, "--node a: that is this node, with which the others are compared; name another one"},
		{VerifyOptions{From: "d"}, "--from d: topology.nodes has no such node; it has a, b, c"},
		{VerifyOptions{Nodes: []string{"c"}, From: "b"}, "--from b: that node is not compared; name it with --node, too"},
		{VerifyOptions{Nodes: []string{"c"}, From: "a"}, "[a c]"},
	} {
		nodes, err := b.verifyNodes(tt.o)
		got := fmt.Sprint(nodes)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.o, got, tt.want)
		}
	}
	cfg.Topology.Nodes = map[string]string{"a": ""}
	if _, err := b.verifyNodes(VerifyOptions{}); err == nil || !strings.Contains(err.Error(), "no other node") {
		t.Errorf("a node alone: %v", err)
	}
}

// TestTablesThatDoNotFitAreSkipped: what nodes do not have alike is told and left out; a pattern that fits nothing is refused.
func TestTablesThatDoNotFitAreSkipped(t *testing.T) {
	of := map[string][]*apply.VerifyTable{
		"a": {{Schema: "s", Name: "here", Columns: []string{"id", "v"}, Key: []string{"id"}}, {Schema: "s", Name: "both", Columns: []string{"id", "v", "w"}, Key: []string{"id", "v"}},
			{Schema: "s", Name: "keyed", Columns: []string{"id"}, Key: []string{"id"}}, {Schema: "s", Name: "bad", Problem: "it has no key"}},
		"b": {{Schema: "s", Name: "both", Columns: []string{"id", "v", "x"}, Key: []string{"v", "id"}, Merged: true}, {Schema: "s", Name: "keyed", Columns: []string{"id"}, Key: []string{"no"}},
			{Schema: "s", Name: "there", Columns: []string{"id"}, Key: []string{"id"}}, {Schema: "s", Name: "bad", Columns: []string{"id"}, Key: []string{"id"}}},
	}
	ask := func(_ context.Context, node string, _ *apply.VerifyQuestion) (*apply.VerifyAnswer, error) {
		return &apply.VerifyAnswer{Tables: of[node]}, nil
	}
	c := newVerifyRun(ask, []string{"a", "b"}, VerifyOptions{}, func(VerifyProgress) {})
	tables, err := c.tables(t.Context())
	if err != nil || len(tables) != 1 || fmt.Sprint(*tables[0].VerifyTable) != "{s both [id v] [id v] true  <nil>}" {
		t.Errorf("%v, %v", tables, err)
	}
	want := "[{s.bad at node a: it has no key} {s.both column w is not on all nodes and is left out} {s.both column x is not on all nodes and is left out} " +
		"{s.here it is not replicated at node b, or is not there} {s.keyed its key is (id) at node a and (no) at node b; give it the same primary key} " +
		"{s.there it is not replicated at node a, or is not there}]"
	if got := fmt.Sprint(c.report.Skipped); got != want {
		t.Errorf("skipped\n%s\nwant\n%s", got, want)
	}
	c.o.Table = "s.no*"
	var exit interface{ ExitCode() int }
	if _, err := c.tables(t.Context()); !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(err.Error(), `no replicated table fits "s.no*"`) {
		t.Errorf("a pattern that fits nothing: %v", err)
	}
}

// TestOnlyWhatIsWantedIsProgress: a node that goes on with other origins than the one that is missing does not come nearer.
func TestOnlyWhatIsWantedIsProgress(t *testing.T) {
	v := func(a, b uint64) (v origin.Vector) {
		v.Advance(origin.Entry{Origin: origin.Origin{Node: "a", Epoch: 1}, Seq: a})
		v.Advance(origin.Entry{Origin: origin.Origin{Node: "b", Epoch: 1}, Seq: b})
		return v
	}
	wanted := v(10, 5)
	if before, after := seenOf(wanted, v(3, 5)), seenOf(wanted, v(3, 99)); before != after {
		t.Errorf("%d, and then %d", before, after)
	}
	if before, after := seenOf(wanted, v(3, 5)), seenOf(wanted, v(4, 5)); before >= after {
		t.Errorf("%d, and then %d", before, after)
	}
}
