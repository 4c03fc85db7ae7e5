package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

func TestSequences(t *testing.T) {
	path := writeConfig(t)
	p := &bridge.SequencePlan{Cluster: "shop", Node: "a", Steps: []bridge.SequenceStep{
		{Sequence: "app.item_id_seq", Table: "app.item", Column: "id", Number: 1, Modulus: 16, Next: 16017, SQL: "ALTER SEQUENCE app.item_id_seq INCREMENT BY 16 START WITH 17 RESTART WITH 16017"},
		{Sequence: "app.line_id_seq", Table: "app.line", Column: "id", Number: 1, Modulus: 16, Next: 33, Planned: true},
	}}
	var asked []bridge.SequenceOptions
	answer := func(_ context.Context, _ *config.Config, o bridge.SequenceOptions) (*bridge.SequencePlan, error) {
		asked = append(asked, o)
		return p, nil
	}
	b := backend{planSequences: answer, applySequences: answer}
	const plan = `-- sequences of node a, cluster shop

-- column id of table app.item: values of this node leave 1 when divided by 16
ALTER SEQUENCE app.item_id_seq INCREMENT BY 16 START WITH 17 RESTART WITH 16017;

-- column id of table app.line: values of this node leave 1 when divided by 16
-- app.line_id_seq is so already; it goes on with 33
`
	if got := call(t, b, "sequences", "plan", "-c", path, "--modulus", "16", "--table", "app.*"); got != (outcome{exitDone, plan, ""}) {
		t.Errorf("plan: %+v", got)
	}
	const applied = "app.item_id_seq goes on with 16017, by 16\napp.line_id_seq is planned already: it goes on with 33, by 16\n"
	if got := call(t, b, "sequences", "apply", "-c", path); got != (outcome{exitDone, applied, ""}) {
		t.Errorf("apply: %+v", got)
	}
	if got := call(t, b, "sequences", "apply", "-c", path, "--json"); got.code != exitDone || !strings.Contains(got.out, `"next": 16017`) || strings.Contains(got.out, "owned") {
		t.Errorf("as JSON: %+v", got)
	}
	if asked[0] != (bridge.SequenceOptions{Modulus: 16, Table: "app.*"}) || asked[1] != (bridge.SequenceOptions{}) {
		t.Errorf("asked for %+v", asked)
	}
	p.Steps[1].Planned, p.Steps[1].Refused = false, "it goes down"
	if got := call(t, b, "sequences", "apply", "-c", path); got.code != exitFound || got.err != "pgbridge: 1 sequence cannot be planned\n" || !strings.Contains(got.out, "app.line_id_seq stays as it is: it goes down\n") {
		t.Errorf("refused: %+v", got)
	}
	if got := call(t, b, "sequences", "plan", "-c", path); got.code != exitDone || !strings.Contains(got.out, "-- app.line_id_seq stays as it is: it goes down\n") {
		t.Errorf("refused plan: %+v", got)
	}
	p.Steps, p.SQL = nil, []string{"CREATE FUNCTION f()", "ALTER TABLE t"}
	if got := call(t, b, "sequences", "plan", "-c", path, "--ids", "time"); got.out != "-- sequences of node a, cluster shop\n\nCREATE FUNCTION f();\n\nALTER TABLE t;\n" {
		t.Errorf("ids: %+v", got)
	}
	b.planSequences = func(context.Context, *config.Config, bridge.SequenceOptions) (*bridge.SequencePlan, error) {
		return nil, errors.New("node b could not be asked")
	}
	if got := call(t, b, "sequences", "plan", "-c", path); got != (outcome{exitFailed, "", "pgbridge: node b could not be asked\n"}) {
		t.Errorf("failed: %+v", got)
	}
	if got := call(t, b, "sequences", "aply"); got != (outcome{exitUsage, "", "pgbridge: unknown command \"aply\"; did you mean \"apply\"?\n"}) {
		t.Errorf("wrong verb: %+v", got)
	}
}
