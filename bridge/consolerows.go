package bridge

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/pgbridge/pgbridge/apply"
)

// Browsers read a JSON number as a float, which makes 1.5 out of 1.50 and rounds large keys. So what the console shows of rows goes
// to it as JSON's text, in strings.

// consoleConflicts is a page of the history, with the kinds that there can be.
type consoleConflicts struct {
	Conflicts []consoleListed `json:"conflicts"`
	More      bool            `json:"more"`
	Kinds     []string        `json:"kinds"`
}

// consoleListed is a conflict with its key as text; empty if that is not known.
type consoleListed struct {
	Conflict
	Key string `json:"key"`
}

func consolePage(p *ConflictPage) consoleConflicts {
	x := consoleConflicts{Conflicts: []consoleListed{}, More: p.More, Kinds: apply.HistoryKinds()}
	for _, c := range p.Conflicts {
		x.Conflicts = append(x.Conflicts, consoleListed{c, c.Key.String()})
	}
	return x
}

// consoleDetail is a conflict with both versions, column by column.
type consoleDetail struct {
	*ConflictDetail
	Key string `json:"key"`
	// Whether a side has a row at all: a delete has none.
	LocalRow  bool            `json:"local_row"`
	RemoteRow bool            `json:"remote_row"`
	Columns   []consoleColumn `json:"columns"`
}

// consoleColumn is a column of two images; nil where an image does not have it.
type consoleColumn struct {
	Name    string  `json:"name"`
	Local   *string `json:"local,omitempty"`
	Remote  *string `json:"remote,omitempty"`
	Differs bool    `json:"differs"`
}

func consoleVersions(d *ConflictDetail) consoleDetail {
	x := consoleDetail{ConflictDetail: d, Key: d.Key.String(), LocalRow: isRow(d.LocalRow), RemoteRow: isRow(d.RemoteRow), Columns: []consoleColumn{}}
	for _, c := range d.Columns {
		x.Columns = append(x.Columns, consoleColumn{c.Name, valueText(c.Local), valueText(c.Remote), c.Differs})
	}
	return x
}

// isRow reports whether an image is one.
func isRow(image json.RawMessage) bool { return image != nil && string(image) != "null" }

// valueText is a value's JSON; nil if there is none.
func valueText(v json.RawMessage) *string {
	if v == nil {
		return nil
	}
	text := string(v)
	return &text
}

// consoleTransaction is a parked transaction with its name, and its key as text.
type consoleTransaction struct {
	*ParkedTransaction
	Name string `json:"name"`
	Key  string `json:"key"`
}

func consoleName(p *ParkedTransaction) consoleTransaction {
	return consoleTransaction{p, p.Name(), string(p.Key)}
}

// consoleParked is a parked transaction with the first of its changes.
type consoleParked struct {
	consoleTransaction
	Rows []consoleChange `json:"rows"`
}

// consoleChange is one change, column by column: local is the old image, remote the new one.
type consoleChange struct {
	Table   string          `json:"table"`
	Kind    string          `json:"kind"`
	Unread  string          `json:"unread,omitempty"`
	Columns []consoleColumn `json:"columns"`
}

func consoleChanges(p *ParkedTransaction, changes []ParkedChange) (consoleParked, error) {
	x := consoleParked{consoleName(p), []consoleChange{}}
	for _, c := range changes {
		columns, err := bothImages(c.Old, c.New)
		if err != nil {
			return x, fmt.Errorf("read a change of %s: %w", p.Name(), err)
		}
		x.Rows = append(x.Rows, consoleChange{c.Table, c.Kind, c.Unread, columns})
	}
	return x, nil
}

// bothImages gives the columns of two images, in their order.
func bothImages(before, after json.RawMessage) ([]consoleColumn, error) {
	columns, at := []consoleColumn{}, map[string]int{}
	for side, image := range []json.RawMessage{before, after} {
		if !isRow(image) {
			continue
		}
		d := json.NewDecoder(bytes.NewReader(image))
		if _, err := d.Token(); err != nil { // the brace
			return nil, err
		}
		for d.More() {
			name, err := d.Token()
			var value json.RawMessage
			if err == nil {
				err = d.Decode(&value)
			}
			if err != nil {
				return nil, err
			}
			i, ok := at[fmt.Sprint(name)]
			if !ok {
				i = len(columns)
				at[fmt.Sprint(name)] = i
				columns = append(columns, consoleColumn{Name: fmt.Sprint(name)})
			}
			if side == 0 {
				columns[i].Local = valueText(value)
			} else {
				columns[i].Remote = valueText(value)
			}
		}
	}
	return columns, nil
}
