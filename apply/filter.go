package apply

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgbridge/pgbridge/conflict"
)

// The outcomes of a conflict, as the history writes them.
const (
	remoteWins = "remote wins"
	localWins  = "local wins"
)

// ConflictFilter says which conflicts are meant: those that fit all of it. The zero filter means all.
type ConflictFilter struct {
	Table        string            // a pattern over schema.table: * for any characters, ? for one
	Key          map[string]string // columns with their values, all of which one of the images has; see KeyValue
	Since, Until time.Time
	Kind         string // as in conflict.Kind
	Origin       string // of either side: a node's name, or one with its epoch
	Outcome      string // "remote wins" or "local wins", or the first word of it
	Before       int64  // only those whose id is smaller, to go on behind a page; zero: all
	Limit        int    // how many at most, 50 if zero
}

const defaultLimit = 50

func (f *ConflictFilter) limit() int {
	if f.Limit == 0 {
		return defaultLimit
	}
	return f.Limit
}

// KeyValue is the value of a column as a filter has it: a JSON string's text, and the JSON itself of anything else.
func KeyValue(v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) == nil && string(v) != "null" {
		return s
	}
	var b bytes.Buffer
	if json.Compact(&b, v) != nil {
		return string(v)
	}
	return b.String()
}

// kinds are those that the history can have.
var kinds = []string{string(conflict.InsertInsert), string(conflict.InsertDelete), string(conflict.UpdateUpdate), string(conflict.UpdateDelete),
	string(conflict.DeleteUpdate), string(conflict.DeleteDelete), string(conflict.TruncateUpdate),
	string(conflict.Undecided), string(conflict.Unique), discarded, OrphanKind, RepairKind}

// HistoryKinds lists the kinds of conflicts that the history can have.
func HistoryKinds() []string { return slices.Clone(kinds) }

// likePattern turns a pattern of ours into one for LIKE.
func likePattern(pattern string) string {
	return strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`, "*", "%", "?", "_").Replace(pattern)
}

// Validate checks the filter. Its error asks for the exit code of wrong usage.
func (f *ConflictFilter) Validate() error {
	refuse := func(mend, format string, args ...any) error { return &refusal{fmt.Errorf(format, args...), mend} }
	if schema, name, ok := strings.Cut(f.Table, "."); f.Table != "" && (!ok || schema == "" || name == "") {
		return refuse("write "+`"public.items" or "app.*"`, "table pattern %q is not schema.table", f.Table)
	}
	if f.Kind != "" && !slices.Contains(kinds, f.Kind) {
		return refuse("use one of "+strings.Join(kinds, ", "), "there are no conflicts of kind %q", f.Kind)
	}
	switch f.Outcome {
	case "", "remote", "local", remoteWins, localWins:
	default:
		return refuse("use remote or local, which is the side that won", "there is no outcome %q", f.Outcome)
	}
	if f.Limit < 0 {
		return refuse("use 1 or more", "limit %d is out of range", f.Limit)
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && f.Until.Before(f.Since) {
		return refuse("let the second be later than the first", "nothing is since %s and until %s",
			f.Since.Format(time.RFC3339), f.Until.Format(time.RFC3339))
	}
	return nil
}

// sql returns the condition on alias c, from WHERE on, with its arguments.
func (f *ConflictFilter) sql() (string, []any) {
	conditions := []string{"true"}
	var args []any
	// Each %[1]s is the next argument.
	add := func(condition string, arg any) {
		args = append(args, arg)
		conditions = append(conditions, fmt.Sprintf(condition, fmt.Sprintf("$%d", len(args))))
	}
	if f.Table != "" {
		add("c.relation LIKE %[1]s", likePattern(f.Table))
	}
	if !f.Since.IsZero() {
		add("c.at >= %[1]s", f.Since)
	}
	if !f.Until.IsZero() {
		add("c.at <= %[1]s", f.Until)
	}
	if f.Kind != "" {
		add("c.kind = %[1]s", f.Kind)
	}
	if f.Origin != "" {
		add("%[1]s IN (c.remote_origin, split_part(c.remote_origin, '/', 1), c.local_origin, split_part(c.local_origin, '/', 1))", f.Origin)
	}
	if f.Outcome != "" {
		add("c.outcome = %[1]s", strings.TrimSuffix(f.Outcome, " wins")+" wins")
	}
	if f.Before > 0 {
		add("c.id < %[1]s", f.Before)
	}
	if len(f.Key) > 0 {
		var cols, values []string
		for col, value := range f.Key {
			cols, values = append(cols, col), append(values, value)
		}
		args = append(args, cols, values)
		has := func(image string) string {
			return fmt.Sprintf("(c.%s IS NOT NULL AND NOT EXISTS (SELECT FROM unnest($%d::text[], $%d::text[]) k(col, value) "+
				"WHERE (c.%s ->> k.col) IS DISTINCT FROM k.value))", image, len(args)-1, len(args), image)
		}
		conditions = append(conditions, "("+has("local_row")+" OR "+has("remote_row")+")")
	}
	return "WHERE " + strings.Join(conditions, " AND "), args
}
