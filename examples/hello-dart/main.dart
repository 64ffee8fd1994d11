import 'dart:convert';
import 'dart:io';

void main() async {
  try {
    // Read input from mounted request.json
    final requestFile = File('/request.json');
    final requestJson = await requestFile.readAsString();
    final request = jsonDecode(requestJson) as Map<String, dynamic>;

    // Extract body, query, headers
    final body = request['body'] as Map<String, dynamic>? ?? {};
    final query = request['query'] as Map<String, dynamic>? ?? {};
    final headers = request['headers'] as Map<String, dynamic>? ?? {};

    // Process
    final result = {
      'message': 'Hello, ${body['name'] ?? 'World'}!',
      'timestamp': DateTime.now().toIso8601String(),
    };

    // Write result to mounted result.json
    final resultFile = File('/result.json');
    await resultFile.writeAsString(jsonEncode({
      'body': result,
    }));

    exit(0);
  } catch (e) {
    // Write error to result.json
    final resultFile = File('/result.json');
    await resultFile.writeAsString(jsonEncode({
      'body': {
        'error': e.toString(),
      },
    }));
    exit(1);
  }
}
