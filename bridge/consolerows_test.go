package bridge

import (
	"encoding/json"
	"testing"
)

// TestConsoleKeepsDigits: what a browser would round comes as text, in the columns' order, and what is not there is told from NULL.
func TestConsoleKeepsDigits(t *testing.T) {
	raw := func(text string) json.RawMessage { return json.RawMessage(text) }
	key := ConflictKey{{Name: "id", Value: raw("9007199254740993")}}
	p := &ParkedTransaction{Origin: "b", Seq: 7, Key: raw(`{"id":9007199254740993}`)}
	changes, err := consoleChanges(p, []ParkedChange{{Table: "s.t", Kind: "update", Old: raw(`{"id":9007199254740993}`), New: raw(`{"z":1.50,"id":9007199254740993,"n":null}`)},
		{Table: "s.t", Kind: "delete", Old: raw(`{"id":1}`)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		x    any
		want string
	}{
		{consolePage(&ConflictPage{Conflicts: []Conflict{{Key: key}}}).Conflicts[0].Key, `"id=9007199254740993"`},
		{consoleVersions(&ConflictDetail{LocalRow: raw(`{}`), RemoteRow: raw("null"), Conflict: Conflict{Key: key},
			Columns: []ConflictColumn{{Name: "v", Local: raw("1.50"), Remote: raw("1.5"), Differs: true}, {Name: "n", Local: raw("null")}}}).Columns,
			`[{"name":"v","local":"1.50","remote":"1.5","differs":true},{"name":"n","local":"null","differs":false}]`},
		{changes.Rows, `[{"table":"s.t","kind":"update","columns":[{"name":"id","local":"9007199254740993","remote":"9007199254740993","differs":false},` +
			`{"name":"z","remote":"1.50","differs":false},{"name":"n","remote":"null","differs":false}]},` +
			`{"table":"s.t","kind":"delete","columns":[{"name":"id","local":"1","differs":false}]}]`},
	} {
		if got, err := json.Marshal(c.x); err != nil || string(got) != c.want {
			t.Errorf("%v: %s\nwant %s", err, got, c.want)
		}
	}
	text, err := json.Marshal(changes)
	var seen struct{ Name, Key string }
	if err != nil || json.Unmarshal(text, &seen) != nil || seen.Name != "b:7" || seen.Key != `{"id":9007199254740993}` {
		t.Errorf("%v: %s", err, text)
	}
	text, err = json.Marshal(consoleVersions(&ConflictDetail{LocalRow: raw(`{}`), RemoteRow: raw("null"), Conflict: Conflict{ID: 3, Key: key}}))
	var detail struct {
		ID        int64
		Key       string
		LocalRow  bool `json:"local_row"`
		RemoteRow bool `json:"remote_row"`
	}
	if err != nil || json.Unmarshal(text, &detail) != nil || detail.ID != 3 || detail.Key != "id=9007199254740993" || !detail.LocalRow || detail.RemoteRow {
		t.Errorf("%v: %s", err, text)
	}
}
