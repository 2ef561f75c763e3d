// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
	"github.com/millrace-project/millrace/services/calculator/internal/source/convert"
)

// isManifest tells by its name whether a file is read. Hidden files are not:
// editors and atomic writers use them for what is not finished.
func isManifest(name string) bool {
	if strings.HasPrefix(filepath.Base(name), ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// manifest is what a file says.
type manifest struct {
	objects []located
	// problems are about the file, its documents and their objects' fields.
	problems []problem.Problem
	// damaged tells that something could not be read, so that an object which
	// is missing may still be wanted.
	damaged bool
	// ignored lists kinds that are not read, for the debug log.
	ignored []string
}

// located is an object with the number of its document, counted from 1.
type located struct {
	object   model.Object
	document int
}

// kinds has a constructor for every kind that is read.
var kinds = map[string]map[string]func() metav1.Object{
	"Service":       {"v1": func() metav1.Object { return &corev1.Service{} }},
	"Node":          {"v1": func() metav1.Object { return &corev1.Node{} }},
	"Namespace":     {"v1": func() metav1.Object { return &corev1.Namespace{} }},
	"Pod":           {"v1": func() metav1.Object { return &corev1.Pod{} }},
	"EndpointSlice": {"discovery.k8s.io/v1": func() metav1.Object { return &discoveryv1.EndpointSlice{} }},
}

// clusterScoped has the kinds without a namespace.
var clusterScoped = map[string]bool{"Node": true, "Namespace": true}

// parse reads a manifest: YAML or JSON, any number of documents, lists taken
// apart. It never fails as a whole; what cannot be read becomes a problem.
func parse(path string, content []byte) *manifest {
	m := &manifest{}
	next := yamlDocuments(content)
	if filepath.Ext(path) == ".json" {
		next = jsonDocuments(content)
	}
	for document := 1; ; document++ {
		data, err := next()
		if errors.Is(err, io.EOF) {
			return m
		}
		where := documentKey(path, document)
		if err != nil {
			m.fail(where, "", err)
			if data == nil {
				return m // there is no telling where the next document begins
			}
			continue
		}
		m.parseObject(where, document, "", data)
	}
}

func documentKey(path string, document int) model.Key {
	return model.Key{Kind: source.KindFile, Name: fmt.Sprintf("%s#%d", path, document)}
}

// yamlDocuments returns a function that gives one YAML document after the
// other, as JSON. Data that comes with an error tells that more may follow.
func yamlDocuments(content []byte) func() ([]byte, error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	return func() ([]byte, error) {
		text, err := reader.Read()
		if err != nil {
			return nil, err
		}
		data, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return text, fmt.Errorf("is not valid YAML: %w", err)
		}
		return data, nil
	}
}

// jsonDocuments returns a function that gives one JSON value after the other.
func jsonDocuments(content []byte) func() ([]byte, error) {
	decoder := json.NewDecoder(bytes.NewReader(content))
	return func() ([]byte, error) {
		var data json.RawMessage
		if err := decoder.Decode(&data); err != nil {
			if errors.Is(err, io.EOF) {
				return nil, io.EOF
			}
			return nil, fmt.Errorf("is not valid JSON: %w", err)
		}
		return data, nil
	}
}

// fail notes that something of the file could not be read.
func (m *manifest) fail(object model.Key, field string, err error) {
	m.damaged = true
	m.problems = append(m.problems, problem.Problem{Object: object, Field: field,
		Message: fmt.Sprintf("%v; objects of this file that were read before and are missing now stay as they were", err)})
}

// parseObject reads one object. within is the path of a list's item.
func (m *manifest) parseObject(where model.Key, document int, within string, data []byte) {
	if trimmed := bytes.TrimSpace(data); len(trimmed) == 0 || string(trimmed) == "null" {
		return // an empty document, as between two separators
	}
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &head); err != nil {
		field, message := typeError(err, data)
		m.fail(where, join(within, field), errors.New(message))
		return
	}
	switch {
	case head.Kind == "":
		m.fail(where, join(within, "kind"), errors.New("is missing"))
		return
	case strings.HasSuffix(head.Kind, "List"):
		for i, item := range head.Items {
			// Items of a typed list need not repeat their kind.
			item = withKind(item, head.APIVersion, strings.TrimSuffix(head.Kind, "List"))
			m.parseObject(where, document, join(within, fmt.Sprintf("items[%d]", i)), item)
		}
		return
	}
	versions, ok := kinds[head.Kind]
	if !ok {
		m.ignored = append(m.ignored, head.Kind)
		return
	}
	key := model.Key{Kind: model.Kind(head.Kind), Namespace: head.Metadata.Namespace, Name: head.Metadata.Name}
	if clusterScoped[head.Kind] {
		key.Namespace = ""
	} else if key.Namespace == "" {
		key.Namespace = metav1.NamespaceDefault
	}
	build, ok := versions[head.APIVersion]
	if !ok {
		for known := range versions {
			m.fail(where, join(within, "apiVersion"), fmt.Errorf("%s: %q is not read, write %q", key, head.APIVersion, known))
		}
		return
	}
	if key.Name == "" {
		m.fail(where, join(within, "metadata.name"), fmt.Errorf("%s has no name", head.Kind))
		return
	}
	object := build()
	unknown, err := kjson.UnmarshalStrict(data, object)
	if err != nil {
		field, message := typeError(err, data)
		m.fail(where, join(within, field), fmt.Errorf("%s: %s", key, message))
		return
	}
	for _, one := range unknown {
		field := ""
		var located kjson.FieldError
		if errors.As(one, &located) {
			field = located.FieldPath()
		}
		m.problems = append(m.problems, problem.Problem{Object: where, Field: join(within, field),
			Message: fmt.Sprintf("%s: %v; the field is left out, the rest of the object is used", key, one)})
	}
	object.SetNamespace(key.Namespace)
	converted, err := convert.Object(object)
	if err != nil {
		m.fail(where, within, fmt.Errorf("%s: %w", key, err))
		return
	}
	m.objects = append(m.objects, located{converted, document})
}

// withKind adds apiVersion and kind to an object that has none.
func withKind(data []byte, apiVersion, kind string) []byte {
	if kind == "" {
		return data
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(data, &fields) != nil || fields == nil {
		return data // reported when the object is read
	}
	add := func(field, value string) {
		if _, ok := fields[field]; !ok {
			fields[field], _ = json.Marshal(value) // a string can always be encoded
		}
	}
	add("apiVersion", apiVersion)
	add("kind", kind)
	completed, err := json.Marshal(fields)
	if err != nil {
		return data
	}
	return completed
}

// join puts two parts of a field's path together.
func join(within, field string) string {
	switch {
	case within == "":
		return field
	case field == "":
		return within
	default:
		return within + "." + field
	}
}

// typeError takes an error of decoding apart into the field it is about and a
// message without the decoder's own jargon.
func typeError(err error, data []byte) (field, message string) {
	var mistyped *json.UnmarshalTypeError
	if !errors.As(err, &mistyped) {
		return "", err.Error()
	}
	var document any
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	field = mistyped.Field
	if field != "" && decoder.Decode(&document) == nil {
		if located, ok := locate(document, strings.Split(field, "."), mistyped.Value); ok {
			field = strings.TrimPrefix(located, ".")
		}
	}
	return field, fmt.Sprintf("must be %s, not %s", wanted(mistyped), found(mistyped.Value))
}

// wanted says what a field must be.
func wanted(mistyped *json.UnmarshalTypeError) string {
	kind := mistyped.Type
	for kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	switch kind.Kind() {
	case reflect.Struct, reflect.Map:
		return "a mapping"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if strings.HasPrefix(mistyped.Value, numberPrefix) {
			return fmt.Sprintf("a whole number of at most %d bits", kind.Bits())
		}
		return "a number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return "a number"
	default:
		return "of type " + kind.String()
	}
}

// numberPrefix is before a number that the decoder quotes, because it is one
// but of the wrong kind or size.
const numberPrefix = "number "

// found says what a field is, from the decoder's word for it.
func found(value string) string {
	switch value {
	case "object":
		return "a mapping"
	case "array":
		return "a list"
	case "string":
		return "text"
	case "bool":
		return "true or false"
	case "number":
		return "a number"
	default:
		return strings.TrimPrefix(value, numberPrefix)
	}
}

// locate gives the path of the first value of the decoder's kind under the
// names, with the indexes of the lists on the way, which the decoder leaves
// out.
func locate(value any, names []string, kind string) (path string, ok bool) {
	if list, isList := value.([]any); isList && len(names) > 0 {
		for i, item := range list {
			if path, ok := locate(item, names, kind); ok {
				return fmt.Sprintf("[%d]%s", i, path), true
			}
		}
		return "", false
	}
	if len(names) == 0 {
		if list, isList := value.([]any); isList && kind != "array" {
			for i, item := range list {
				if isKind(item, kind) {
					return fmt.Sprintf("[%d]", i), true
				}
			}
		}
		return "", isKind(value, kind)
	}
	fields, isMapping := value.(map[string]any)
	if !isMapping {
		return "", false
	}
	path, ok = locate(fields[names[0]], names[1:], kind)
	return "." + names[0] + path, ok
}

// isKind tells whether a value is what the decoder calls kind.
func isKind(value any, kind string) bool {
	switch value := value.(type) {
	case map[string]any:
		return kind == "object"
	case []any:
		return kind == "array"
	case string:
		return kind == "string"
	case bool:
		return kind == "bool"
	case json.Number:
		return kind == "number" || kind == numberPrefix+value.String()
	default:
		return false
	}
}
