package apply

import (
	"encoding/json"
	"fmt"
	"strings"
)

// image is one side's version of a row.
type image struct {
	text   string   // empty: there was no row
	names  []string // of its columns, in their order
	values map[string]json.RawMessage
}

// parseImage takes an image apart; one that is not there has no columns.
func parseImage(text *string) (*image, error) {
	i := &image{values: map[string]json.RawMessage{}}
	if text == nil {
		return i, nil
	}
	i.text = *text
	dec := json.NewDecoder(strings.NewReader(i.text))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("is not a JSON object (%v, %v)", t, err)
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
		name, _ := t.(string) // a member's name always is
		i.names, i.values[name] = append(i.names, name), v
	}
	return i, nil
}

func (i *image) there() bool { return i.text != "" }

// json is the image as it was recorded.
func (i *image) json() json.RawMessage {
	if !i.there() {
		return json.RawMessage("null")
	}
	return json.RawMessage(i.text)
}

// notRecorded is the reason that images.mark has left in place of the row; empty if the row is there.
func (i *image) notRecorded() string {
	var text string
	if len(i.names) != 1 || json.Unmarshal(i.values["pgbridge"], &text) != nil {
		return ""
	}
	reason, ok := strings.CutPrefix(text, notRecorded)
	if !ok {
		return ""
	}
	return reason
}
