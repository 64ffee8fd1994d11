import 'dart:convert';
import 'dart:io';

void main() {
  final request = jsonDecode(File('/request.json').readAsStringSync()) as Map<String, dynamic>;
  final body = request['body'];
  final name = body is Map ? body['name'] ?? 'world' : 'world';
  print('greeting $name'); // shown by `dartcloud logs`

  final result = {
    'body': {'message': 'Hello, $name!'},
  };
  File('/result.json').writeAsStringSync(jsonEncode(result));
}
